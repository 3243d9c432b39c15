r"""Guides for block stacking: which block to take, and where to leave it.

Each names its block, or takes it from the stage that the episode is in: the next
pick-and-place towards the environment's goal, or towards a `tower` of one's own
(`diffuser_envs.kuka.stages`). All are usable alone, and they add up:

    StackMatch() + Contact()                        KukaStack-Conditional
    Place() + Contact()                             KukaStack-Rearrangement
    Place(tower=(2, 0, 1)) + Contact(tower=(2, 0, 1))   block 1 on 0 on 2, on any goal
"""

from diffuser_envs.kuka.guides.composed import StackTask
from diffuser_envs.kuka.guides.constraints import AvoidBlocks, Contact, Place, Rest
from diffuser_envs.kuka.guides.match import StackMatch

__all__ = ["AvoidBlocks", "Contact", "Place", "Rest", "StackMatch", "StackTask"]
