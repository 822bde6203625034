"""What people see of studies: the display of a running study, tables, comparisons, and the figures on parameters."""
