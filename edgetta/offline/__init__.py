"""What the workstation does before a model ships."""
