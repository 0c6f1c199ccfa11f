"""The servers that `align up` starts on this machine, kept track of, asked, repaired, ended and examined."""
