"""One table a module. Each has `text(src) -> str`; `experiments` takes the name of one as well."""
