"""The bus itself."""
