"""The `deploy-image` command. It uses the package as any program would: public names only."""
