"""Point-mass mazes: layouts, environment, goal resampling, demonstrator, pictures."""
