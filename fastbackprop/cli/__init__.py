"""The command line: the main job, gradients and checks of files, and what the package runs on."""
