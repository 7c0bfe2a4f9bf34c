"""Which cases there are: files, folders, data sets and manifests."""
