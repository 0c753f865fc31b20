"""What differs between families of recognisers, one folder file each."""
