"""The commands of `lens`, one a file: parse, import inside the function, call one function, print one line."""
