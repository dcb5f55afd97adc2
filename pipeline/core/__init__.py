"""What every room needs: errors, progress, registries, and what this machine or a cluster has."""
