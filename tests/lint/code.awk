# SPDX-License-Identifier: LGPL-2.1-or-later
# Prints "FILE:LINE:code" of C files without comments and literals.
FNR == 1 { comment = 0 }
{
    line = $0
    code = ""
    while (line != "") {
        if (comment) {
            end = index(line, "*/")
            if (end == 0) {
                break
            }
            line = substr(line, end + 2)
            comment = 0
        } else if (match(line, /^"([^"\\]|\\.)*"/) ||
                   match(line, /^'([^'\\]|\\.)*'/)) {
            code = code "\"\""
            line = substr(line, RLENGTH + 1)
        } else if (substr(line, 1, 2) == "/*") {
            comment = 1
            line = substr(line, 3)
        } else {
            code = code substr(line, 1, 1)
            line = substr(line, 2)
        }
    }
    if (code ~ /[^ ]/) {
        print FILENAME ":" FNR ":" code
    }
}
