package plan

import "golang.org/x/sys/unix"

// sysFstatat fills a struct stat.
const sysFstatat = unix.SYS_FSTATAT
