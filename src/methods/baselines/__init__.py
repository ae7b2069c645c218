"""The methods that CW-RGP's repository compares with, one a file, under its protocol."""
