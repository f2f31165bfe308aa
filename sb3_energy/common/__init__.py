"""What every algorithm of the package is put together from."""
