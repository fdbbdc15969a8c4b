"""``python -m vagrant.smoke``: plays the smoke test of `make vagrant-test` on virtual machines."""
