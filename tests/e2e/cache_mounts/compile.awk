# A compiler that is quick: `awk -f compile.awk SOURCE OBJECT LIST`. The object is the text of the source and of what it
# includes, the list says for make what was read. As with a real one, the object is not there at one stroke.
function take(path, line, parts, status) {
    if (path in taken) return
    taken[path] = 1
    order[++count] = path
    while ((status = (getline line < path)) > 0) {
        if (line == "#error") fail(path ": error: not C")
        if (line !~ /^#include/) { text = text line "\n"; continue }
        split(line, parts, "\"")
        take(parts[2])
    }
    close(path)
    if (status < 0) fail(path ": error: not here")
}
function fail(message) {
    print message
    exit 1
}
BEGIN {
    object = ARGV[2]
    list = ARGV[3]
    take(ARGV[1])
    printf "%s:", object > list
    for (number = 1; number <= count; number++) printf " %s", order[number] > list
    printf "\n" > list
    for (number = 2; number <= count; number++) printf "%s:\n", order[number] > list
    close(list)
    printf "%s", substr(text, 1, 3) > object
    fflush(object)
    system("sleep 0.01")
    printf "%s", substr(text, 4) > object
    close(object)
}
