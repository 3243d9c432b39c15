"""A local page to play with a planner: drag the goal, and the plan follows.

    mouse → page → worker (newest change wins) → session → frame → page

| module | is |
|---|---|
| `session` | what is set up, planned and run: no thread, no page |
| `worlds` | what an environment looks like and what can be dragged in it |
| `worker` | the one thread that plans; changes that wait are merged |
| `sharing` | what is set up, as Python and as a command line |
| `scene`, `panel` | what is drawn, and what is set, with viser |
| `page` | the server of a session |
"""
