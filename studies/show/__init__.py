"""What people see of a study: live view, tables, comparison, insight."""
