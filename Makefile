# crisp, a container runtime for Kubernetes.
#
#   make demo     watch a pod run
#   make test     everything: checks, tests, conformance
#   make bench    crisp side by side with containerd
#
# Tools and images that only tests need are built into .cache. The demo, the
# conformance run and most tests change namespaces and cgroups: run as root.

GO ?= go
# A package's version must grow from commit to commit.
VERSION ?= 0.1.0+$(shell TZ=UTC git log -1 --format=%cd. --date=format-local:%Y%m%d%H%M%S 2>/dev/null)$(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS = -s -w -X main.version=$(VERSION)
# The time of what is packed, for who packs it again.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
CACHE := .cache
export CGO_ENABLED := 0
export GOFLAGS := -buildvcs=false $(GOFLAGS)

# All programs are built with the same flags where these tell the compiler's
# results apart, so that what they have in common is compiled once.
COMPILE := $(GO) build -trimpath

TOOLS := $(addprefix $(CACHE)/bin/,crictl critest registry staticcheck)
PLUGINS := $(CACHE)/cni/bridge
PEERS := $(addprefix $(CACHE)/peers/,containerd runc)
LAB := $(CACHE)/bin/crictl $(CACHE)/bin/registry $(PLUGINS)

.PHONY: help
help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: build
build: ## build bin/crisp and bin/crisp-keeper, static
	$(COMPILE) -ldflags "$(LDFLAGS)" -o bin/ ./cmd/crisp ./cmd/crisp-keeper

.PHONY: install
install: build ## install the programs below $(DESTDIR)$(PREFIX)
	install -D -m 755 -t $(DESTDIR)$(or $(PREFIX),/usr/local)/bin bin/crisp bin/crisp-keeper

PROCESSORS := amd64 arm64
PACKAGES := $(CACHE)/packages

.PHONY: deb
deb: build ## a Debian package for this machine, bin/crisp_*.deb
	@rm -f bin/crisp_*.deb
	hack/package/deb/build "$(VERSION)" $$($(GO) env GOARCH) bin bin

.PHONY: packages
packages: $(PROCESSORS:%=package-%) ## deb, rpm and tarball for amd64 and arm64, in dist
	@cd dist && sha256sum *.deb *.rpm *.tar.gz >SHA256SUMS && cat SHA256SUMS

.PHONY: $(PROCESSORS:%=package-%)
$(PROCESSORS:%=package-%): package-%:
	GOARCH=$* $(COMPILE) -ldflags "$(LDFLAGS)" -o $(PACKAGES)/$*/ ./cmd/crisp ./cmd/crisp-keeper
	@mkdir -p dist
	for form in deb rpm tarball; do hack/package/$$form/build "$(VERSION)" $* $(PACKAGES)/$* dist || exit 1; done

##### Checks

.PHONY: check
check: fmt vet staticcheck tidy ## what can be said without running anything

.PHONY: fmt
fmt: ## are all files formatted?
	@unformatted=$$(gofmt -l cmd cri runtime image network hack test) && \
	if [ -n "$$unformatted" ]; then echo "not formatted by gofmt:"; echo "$$unformatted"; exit 1; fi

.PHONY: tidy
tidy: ## is go.mod what the code requires?
	$(GO) mod tidy -diff

.PHONY: reproduce
reproduce: ## do two builds of a commit, in other places, give the same packages?
	@set -e; rm -rf $(CACHE)/reproduce; for n in one another; do \
		mkdir -p $(CACHE)/reproduce/$$n; \
		git archive HEAD | tar -x -C $(CACHE)/reproduce/$$n; \
		GOCACHE=$(CURDIR)/$(CACHE)/reproduce/cache-$$n $(MAKE) --no-print-directory -C $(CACHE)/reproduce/$$n packages VERSION="$(VERSION)"; \
	done; \
	cmp $(CACHE)/reproduce/one/dist/SHA256SUMS $(CACHE)/reproduce/another/dist/SHA256SUMS; \
	rm -rf $(CACHE)/reproduce

.PHONY: vet
vet: ## go vet, for both processors
	$(GO) vet ./...
	GOARCH=arm64 $(GO) vet ./...
	$(GO) vet -tags crash ./cri/pod ./network/cni ./test/crash
	$(GO) vet -tags node ./test/node/...

.PHONY: staticcheck
staticcheck: $(CACHE)/bin/staticcheck ## staticcheck, for both processors
	$(CACHE)/bin/staticcheck ./...
	GOARCH=arm64 $(CACHE)/bin/staticcheck ./...
	$(CACHE)/bin/staticcheck -tags crash ./cri/pod ./network/cni ./test/crash
	$(CACHE)/bin/staticcheck -tags node ./test/node/...

# Rules of gosec that are off for the whole tree, because what they warn of is
# what a runtime does, or is told from faults by nothing in the text:
#   G103       system calls take pointers; go vet checks their form
#   G104       errors of clean-up and of closing, staticcheck's and review's task
#   G115       conversions between widths, which the kernel's interfaces ask for
#   G204       the program is AppArmor's parser, found in fixed directories
#   G301 G302  what a container's or another user reads: logs, /etc/hosts,
#              roots of layers, a pinned namespace, a socket for root's group
#   G304 G703  files that the administrator or the runtime names; what a
#              container may have changed is opened by runtime/rootpath
#   G404       choices that need to be even, not secret: SELinux's categories
#   G602       an index that is checked in the same condition
GOSEC_OFF := G103,G104,G115,G204,G301,G302,G304,G703,G404,G602

.PHONY: gosec
gosec: $(CACHE)/bin/gosec ## gosec; the rules that are off say why
	$(CACHE)/bin/gosec -quiet -exclude=$(GOSEC_OFF) ./cmd/... ./cri/... ./runtime/... ./image/... ./network/...

VULNDB ?= https://vuln.go.dev

.PHONY: vulncheck
vulncheck: build $(CACHE)/bin/govulncheck ## known vulnerabilities in what is linked; needs VULNDB=https://vuln.go.dev
	@if curl -sSfL -m 20 -o /dev/null $(VULNDB)/index/db.json; then \
		$(CACHE)/bin/govulncheck -db $(VULNDB) ./cmd/...; \
	else \
		echo "NOT CHECKED for known vulnerabilities: the database $(VULNDB) cannot be reached"; exit 3; \
	fi

.PHONY: sbom
sbom: build $(CACHE)/bin/cyclonedx-gomod ## what crisp is made of, bin/crisp.cdx.json and bin/crisp-keeper.cdx.json
	for program in crisp crisp-keeper; do \
		$(CACHE)/bin/cyclonedx-gomod bin -json -licenses -std -version "$(VERSION)" -output bin/$$program.cdx.json bin/$$program || exit 1; \
	done

##### Tests

.PHONY: test
test: needs-test build tools images demo-image packages programs ## everything; TOTALS=FILE gets the numbers
	$(CACHE)/bin/suite -totals "$(TOTALS)" $(if $(UNTIL),-until $(UNTIL))

.PHONY: unit
unit: ## tests that need no root and change nothing, with the race detector
	CGO_ENABLED=1 $(GO) test -short -race ./...

.PHONY: root
root: build $(LAB) images packages ## all tests; skips and leavings fail
	CRISP_STRICT=1 $(GO) test -p 1 ./...

# What attacks the node: containers that look at everything and do their worst,
# images, registries and clients that ask for too much.
HOSTILE := Hostile|Resident|Neighbours|Cgroups|CVE|Cost|Exposed|CallsAre|Frozen|GroupKill|Links|Procfs|Swap|Race|Deep|Tainted|Untrusted|Foreign

.PHONY: hostile
hostile: build $(LAB) images ## containers, images and registries that attack the node
	CRISP_STRICT=1 $(GO) test -p 1 -count 1 -run '$(HOSTILE)' ./runtime/... ./image/... ./network/... ./cri/... ./test/e2e
	CRISP_STRICT=1 $(GO) test -p 1 -count 1 ./test/hostile

# Minimising is bounded: it stops the search, for a minute by default, and goes
# on as long where goroutines make an input reach other code each time.
FUZZTIME ?= 30s

.PHONY: fuzz
fuzz: ## each fuzz test for FUZZTIME=30s
	@grep -ro --include='*_test.go' '^func Fuzz[A-Za-z0-9]*' cmd cri runtime image network | sort | \
	while IFS=: read -r file test; do \
		$(GO) test -run '^$$' -fuzz "^$${test#func }$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s "./$$(dirname "$$file")" || exit 1; \
	done

.PHONY: conformance
conformance: build $(LAB) $(CACHE)/bin/critest images programs ## critest against bin/crisp
	$(CACHE)/bin/conformance $(ARGS)

.PHONY: bench
bench: build $(LAB) $(CACHE)/bin/critest $(PEERS) images programs ## side by side with containerd, a quarter of an hour; ARGS=-full
	@$(MAKE) --no-print-directory $(CACHE)/peers/crun/crun || echo "crun cannot be had from Debian: it is left out"
	$(CACHE)/bin/bench $(ARGS)

# Of these, REPORT=1 puts the tables into docs/reliability.md.
CRASH = $(GO) test -C test/crash -tags crash -count 1 -timeout 1h $(1) $(if $(REPORT),-report $(CURDIR)/docs/reliability.md) $(ARGS)

.PHONY: crash
crash: $(LAB) images ## end daemon and keeper at every point and at random ones
	$(call CRASH,-skip 'TestFault|TestSoak')

.PHONY: faults
faults: $(LAB) images ## plugins, disks, limits, reboots and power cuts that go wrong
	$(call CRASH,-run TestFault)

.PHONY: soak
soak: $(LAB) images ## 300 pods come and go (ARGS="-pods 2000") under kills
	$(call CRASH,-run TestSoak)

.PHONY: node
node: build $(LAB) programs ## a Kubernetes node with crisp, a quarter of an hour
	$(CACHE)/bin/suite -totals "$(TOTALS)" node

VM := build $(CACHE)/bin/crictl $(CACHE)/bin/critest $(CACHE)/bin/registry $(PLUGINS) images programs

.PHONY: vm
vm: $(VM) ## boot Debian 13 with crisp to a login shell
	$(CACHE)/bin/vm -shell $(ARGS)

.PHONY: vm-test
vm-test: $(VM) deb ## tests and critest on Debian 13: systemd, cgroup v2, AppArmor, SELinux
	$(CACHE)/bin/vm -totals "$(TOTALS)" $(ARGS)

.PHONY: vm-node
vm-node: kubernetes $(VM) ## a Kubernetes node on Debian 13, with either cgroup driver
	$(CACHE)/bin/vm -node $(ARGS)

.PHONY: demo
demo: needs-demo build $(PLUGINS) demo-image ## a pod from pull to removal, with timings
	$(COMPILE) -o $(CACHE)/bin/ ./hack/demo
	@$(CACHE)/bin/demo

.PHONY: needs-demo needs-test
needs-demo needs-test: # says what the machine lacks, and installs it if it may
	@hack/needs $(@:needs-%=%)

##### Tools and images for tests

.PHONY: tools
tools: $(TOOLS) $(PLUGINS) ## build crictl, critest, a registry, the CNI plugins

.PHONY: programs
programs: # those that run tests
	$(COMPILE) -o $(CACHE)/bin/ ./hack/suite ./hack/demo ./hack/vm ./test/bench ./test/bench/nothing ./test/conformance

.PHONY: images
images: ## build the images that tests pull
	$(GO) run -trimpath ./hack/images

.PHONY: demo-image
demo-image: # the one that the demo pulls
	$(GO) run -trimpath ./hack/images -storage demo -only e2e-test-images/nginx:1.14-2

CRITOOLS_VERSION = $(shell sed -n 's|.*sigs.k8s.io/cri-tools v\([^ ]*\).*|\1|p' hack/tools/criutils/go.mod)
CRITOOLS_FLAGS = -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$(CRITOOLS_VERSION)"

$(CACHE)/bin/crictl: hack/tools/criutils/go.mod
	$(GO) build -C $(<D) -trimpath $(CRITOOLS_FLAGS) -o $(CURDIR)/$@ sigs.k8s.io/cri-tools/cmd/crictl

$(CACHE)/bin/critest: hack/tools/criutils/go.mod
	$(GO) test -C $(<D) -c $(CRITOOLS_FLAGS) -o $(CURDIR)/$@ sigs.k8s.io/cri-tools/cmd/critest

$(CACHE)/bin/registry: hack/tools/registry/go.mod
	$(GO) build -C $(<D) -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ github.com/distribution/distribution/v3/cmd/registry

$(CACHE)/bin/gosec: hack/tools/gosec/go.mod
	$(GO) build -C $(<D) -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ github.com/securego/gosec/v2/cmd/gosec

$(CACHE)/bin/govulncheck: hack/tools/vulncheck/go.mod
	$(GO) build -C $(<D) -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ golang.org/x/vuln/cmd/govulncheck

$(CACHE)/bin/cyclonedx-gomod: hack/tools/sbom/go.mod
	$(GO) build -C $(<D) -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod

$(CACHE)/bin/staticcheck: hack/tools/lint/go.mod
	$(GO) build -C $(<D) -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ honnef.co/go/tools/cmd/staticcheck

$(PLUGINS): hack/tools/cni/go.mod
	@mkdir -p $(@D)
	$(GO) build -C $(<D) -trimpath -ldflags "-s -w" -o $(CURDIR)/$(@D)/ tool

KUBERNETES := hack/tools/kubernetes/go.mod
KUBERNETES_VERSION = $(shell sed -n 's|^require k8s.io/kubernetes v||p' $(KUBERNETES))
KUBERNETES_FLAGS = -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v$(KUBERNETES_VERSION) \
	-X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$(word 2,$(subst ., ,$(KUBERNETES_VERSION)))"

.PHONY: kubernetes
kubernetes: $(CACHE)/kubernetes/kubelet $(CACHE)/kubernetes/coredns ## build Kubernetes, etcd and CoreDNS, some minutes

$(CACHE)/kubernetes/kubelet: $(KUBERNETES)
	@mkdir -p $(@D)
	$(GO) build -C $(<D) -trimpath $(KUBERNETES_FLAGS) -o $(CURDIR)/$(@D)/ tool
	mv $(@D)/server $(@D)/etcd
	touch $@

$(CACHE)/kubernetes/coredns: $(wildcard hack/tools/coredns/*)
	$(GO) build -C hack/tools/coredns -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ .

.PHONY: node-conformance
node-conformance: build $(LAB) kubernetes images $(CACHE)/kubernetes/e2e_node.test ## Kubernetes' own tests of a node, an hour
	$(GO) build -o $(CACHE)/bin/node-conformance ./test/node/conformance
	$(CACHE)/bin/node-conformance $(ARGS)

$(CACHE)/kubernetes/e2e_node.test: $(KUBERNETES)
	$(GO) test -C $(<D) -c -vet=off -trimpath $(KUBERNETES_FLAGS) -o $(CURDIR)/$@ k8s.io/kubernetes/test/e2e_node

##### Runtimes to compare with

PEERS_MOD := hack/tools/peers/go.mod
peer_version = $(shell sed -n 's|^[[:space:]]*$(1) v\([^ ]*\).*|\1|p' $(PEERS_MOD))

$(CACHE)/peers/containerd: $(PEERS_MOD)
	$(GO) build -C $(<D) -ldflags "-s -w -X github.com/containerd/containerd/v2/version.Version=$(call peer_version,github.com/containerd/containerd/v2)" \
		-o $(CURDIR)/$(@D)/ github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2

# runc is partly in C. Without the headers of libseccomp (libseccomp-dev) it
# is built without filters, which makes it faster than it would be on a node.
$(CACHE)/peers/runc: $(PEERS_MOD)
	@pkg-config --exists libseccomp || echo "libseccomp-dev is missing: runc is built without seccomp, and a little faster for it"
	CGO_ENABLED=1 $(GO) build -C $(<D) -tags "$$(pkg-config --exists libseccomp && echo seccomp)" \
		-ldflags "-s -w -X main.version=$(call peer_version,github.com/opencontainers/runc)" -o $(CURDIR)/$@ github.com/opencontainers/runc

# crun is Debian's, taken apart and not installed, with a library that the
# machine may not have.
$(CACHE)/peers/crun/crun:
	@rm -rf $(@D) && mkdir -p $(@D)/lib
	cd $(@D) && apt-get download -q crun libyajl2 && for p in *.deb; do dpkg-deb -x "$$p" .; done
	cp $(@D)/usr/lib/*/libyajl.so* $(@D)/lib/ && cp $(@D)/usr/bin/crun $@

.PHONY: clean
clean: ## remove what was built, but not the cache
	rm -rf bin dist

.PHONY: distclean
distclean: clean ## remove the cache too
	rm -rf $(CACHE)
