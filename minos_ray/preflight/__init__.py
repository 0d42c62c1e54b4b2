"""What is asked of a cluster before the work: its room, its nodes' storage, models, versions, disks and GPUs."""
