# Parses the comments of the Makefile. Without variables, it prints the list of `make help`, at most 80 columns wide.
# With goals and given (the names on the command line), it prints which variable the goals do not support, if any.

function wrapped(words, indent,    list, n, i, line) {
    n = split(words, list, " ")
    for (i = 1; i <= n; i++) {
        if (line != "" && length(line) + length(list[i]) + 1 > 80 - indent) {
            printf "%s\n%*s", line, indent, ""
            line = ""
        }
        line = line (line == "" ? "" : " ") list[i]
    }
    print line
}

function least(a, b) { return a < b ? a : b }

function distance(a, b,    i, j, d) { # number of letters to add, drop or change
    for (i = 0; i <= length(a); i++) d[i, 0] = i
    for (j = 0; j <= length(b); j++) d[0, j] = j
    for (i = 1; i <= length(a); i++)
        for (j = 1; j <= length(b); j++)
            d[i, j] = least(d[i - 1, j - 1] + (substr(a, i, 1) != substr(b, j, 1)), least(d[i - 1, j], d[i, j - 1]) + 1)
    return d[length(a), length(b)]
}

/^##@ / && !goals { printf "%s%s\n", (groups++ ? "\n" : ""), substr($0, 5) }

/^[a-z][a-z-]*:.*## / {
    name = $1
    sub(/:.*/, "", name)
    text = $0
    sub(/.*## /, "", text)
    takes = ""
    if (match(text, / \[.*\]$/)) {
        takes = substr(text, RSTART + 2, RLENGTH - 3)
        text = substr(text, 1, RSTART - 1)
    }
    if (!goals) {
        printf "  make %-16s ", name
        wrapped(text, 24)
        if (takes != "") {
            printf "%24s", ""
            wrapped(takes, 24)
        }
    } else if (index(" " goals " ", " " name " ")) {
        while (match(takes, /[A-Z]+=/)) {
            known[substr(takes, RSTART, RLENGTH - 1)] = 1
            takes = substr(takes, RSTART + RLENGTH)
        }
    }
}

END {
    n = split(given, names, " ")
    for (i = 1; i <= n; i++) {
        if (!goals || names[i] in known) continue
        nearest = all = ""
        for (name in known) {
            all = all (all == "" ? "" : ", ") name
            if (nearest == "" || distance(names[i], name) < distance(names[i], nearest)) nearest = name
        }
        close_enough = nearest != "" && distance(names[i], nearest) <= 2
        printf "make %s takes no %s%s", goals, names[i], (close_enough ? "; perhaps you mean " nearest : all == "" ? "" : ", only " all)
        exit
    }
}
