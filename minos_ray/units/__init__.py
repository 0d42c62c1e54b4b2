"""Work in units on Ray Data, stored one by one."""
