"""The seven stages of a labelling programme, the files between them, and the workspace that holds them: all that knows files, DVC and git."""
