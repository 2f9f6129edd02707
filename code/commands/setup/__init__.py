"""What check_setup tells."""
