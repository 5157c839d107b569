// flannel's daemon. Two of its backends need an SDK of a cloud, and a C compiler:
// the Makefile builds it without these.
module crisp/hack/tools/flannel

go 1.26.0

require github.com/flannel-io/flannel v0.28.10
