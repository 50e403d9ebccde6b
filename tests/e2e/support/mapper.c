/* What no shell command does: reading and writing files through memory, and extended attributes. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    const char *path = argv[2], *value = argc > 3 ? argv[3] : "";
    if (!strcmp(argv[1], "set")) return setxattr(path, "user.colour", value, strlen(value), 0) != 0;
    if (!strcmp(argv[1], "cap")) {
        /* Version 2, effective, CAP_NET_BIND_SERVICE permitted. */
        const unsigned data[5] = {0x02000001, 1 << 10, 0, 0, 0};
        return setxattr(path, "security.capability", data, sizeof data, 0) != 0;
    }
    if (!strcmp(argv[1], "get")) {
        char buffer[256];
        ssize_t length = getxattr(path, "user.colour", buffer, sizeof buffer);
        if (length < 0) return 1;
        return fwrite(buffer, 1, length, stdout) != (size_t)length;
    }
    int writes = !strcmp(argv[1], "write");
    int file = open(path, writes ? O_RDWR : O_RDONLY);
    struct stat stat;
    if (file < 0 || fstat(file, &stat) || !S_ISREG(stat.st_mode) || stat.st_size == 0) return 1;
    int protection = writes ? PROT_READ | PROT_WRITE : PROT_READ;
    char *bytes = mmap(NULL, stat.st_size, protection, MAP_SHARED, file, 0);
    if (bytes == MAP_FAILED) return 1;
    if (writes) {
        bytes[stat.st_size / 2] = value[0];
        return munmap(bytes, stat.st_size) != 0;
    }
    return fwrite(bytes, 1, stat.st_size, stdout) != (size_t)stat.st_size;
}
