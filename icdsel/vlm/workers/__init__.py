"""Several engines that answer together: in processes of this machine, or on the machines of a Ray cluster."""
