module crisp/test/seccompdiff

go 1.26.0

require (
	crisp v0.0.0
	github.com/opencontainers/runtime-spec v1.3.0
	github.com/seccomp/libseccomp-golang v0.11.1
	golang.org/x/net v0.62.0
	golang.org/x/sys v0.49.0
)

replace crisp => ../..
