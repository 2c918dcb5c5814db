"""Result rows as a page, tables and plots, whatever was measured."""
