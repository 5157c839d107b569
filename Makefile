# crisp, a container runtime for Kubernetes.
#
#   make demo     watch a pod run
#   make test     all checks, tests and conformance tests
#   make bench    compare crisp with containerd
#
# Tools and images that only tests need are built into .cache. The demo, the
# conformance run and most tests change namespaces and cgroups: run as root.

GO ?= go
# A package's version must increase from commit to commit.
VERSION ?= 0.1.0+$(shell TZ=UTC git log -1 --format=%cd. --date=format-local:%Y%m%d%H%M%S 2>/dev/null)$(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS = -s -w -X main.version=$(VERSION)
# The timestamp of packed files, for reproducible packages.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)
CACHE := .cache
BIN := bin
export CGO_ENABLED := 0
export GOFLAGS := -buildvcs=false $(GOFLAGS)

# All programs are built with the same flags that are part of the build cache's
# keys, so that common packages are compiled once.
COMPILE := $(GO) build -trimpath -tags nri_no_wasm

TOOLS := $(addprefix $(CACHE)/bin/,crictl critest registry staticcheck nvidia-cdi-hook checkpointctl)
PLUGINS := $(CACHE)/cni/bridge
PEERS := $(addprefix $(CACHE)/peers/,containerd runc)
LAB := $(CACHE)/bin/crictl $(CACHE)/bin/registry $(PLUGINS)

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: build
build: ## build bin/crisp, bin/crisp-keeper and bin/crisp-net, static
	$(COMPILE) -ldflags "$(LDFLAGS)" -o $(BIN)/ ./cmd/crisp ./cmd/crisp-keeper ./cmd/crisp-net

.PHONY: install
install: build ## install the programs below $(DESTDIR)$(PREFIX)
	install -D -m 755 -t $(DESTDIR)$(or $(PREFIX),/usr/local)/bin bin/crisp bin/crisp-keeper
	install -D -m 755 -t $(DESTDIR)$(or $(PREFIX),/usr/local)/lib/cni bin/crisp-net

ARCHES := amd64 arm64
PACKAGES := $(CACHE)/packages

.PHONY: deb
deb: build ## build a Debian package for this machine, bin/crisp_*.deb
	@rm -f $(BIN)/crisp_*.deb
	hack/package/deb/build "$(VERSION)" $$($(GO) env GOARCH) $(BIN) $(BIN)

.PHONY: packages
packages: $(ARCHES:%=package-%) ## build deb, rpm and tarball for amd64 and arm64 in dist
	@cd dist && sha256sum *.deb *.rpm *.tar.gz >SHA256SUMS && cat SHA256SUMS

.PHONY: $(ARCHES:%=package-%)
$(ARCHES:%=package-%): package-%:
	GOARCH=$* $(COMPILE) -ldflags "$(LDFLAGS)" -o $(PACKAGES)/$*/ ./cmd/crisp ./cmd/crisp-keeper ./cmd/crisp-net
	@mkdir -p dist
	for form in deb rpm tarball; do hack/package/$$form/build "$(VERSION)" $* $(PACKAGES)/$* dist || exit 1; done

##### Checks

.PHONY: check
check: fmt vet staticcheck tidy ## all static checks

.PHONY: fmt
fmt: ## check that all files are formatted
	@unformatted=$$(gofmt -l cmd cri runtime image network hack test) && \
	if [ -n "$$unformatted" ]; then echo "not formatted by gofmt:"; echo "$$unformatted"; exit 1; fi

.PHONY: tidy
tidy: ## check that go.mod matches the code
	$(GO) mod tidy -diff

.PHONY: reproduce
reproduce: ## check that two builds of a commit in different directories give identical packages
	@set -e; rm -rf $(CACHE)/reproduce; for n in one another; do \
		mkdir -p $(CACHE)/reproduce/$$n; \
		git archive HEAD | tar -x -C $(CACHE)/reproduce/$$n; \
		GOCACHE=$(CURDIR)/$(CACHE)/reproduce/cache-$$n $(MAKE) --no-print-directory -C $(CACHE)/reproduce/$$n packages VERSION="$(VERSION)"; \
	done; \
	cmp $(CACHE)/reproduce/one/dist/SHA256SUMS $(CACHE)/reproduce/another/dist/SHA256SUMS; \
	rm -rf $(CACHE)/reproduce

.PHONY: vet
vet: ## go vet, for both architectures
	$(GO) vet ./...
	GOARCH=arm64 $(GO) vet ./...
	$(GO) vet -tags crash ./cri/pod ./network/cni ./runtime/failpoint ./test/crash
	$(GO) vet -tags node ./test/node/...

.PHONY: staticcheck
staticcheck: $(CACHE)/bin/staticcheck ## staticcheck, for both architectures
	$(CACHE)/bin/staticcheck ./...
	GOARCH=arm64 $(CACHE)/bin/staticcheck ./...
	$(CACHE)/bin/staticcheck -tags crash ./cri/pod ./network/cni ./runtime/failpoint ./test/crash
	$(CACHE)/bin/staticcheck -tags node ./test/node/...

# Rules of gosec that are disabled for the whole tree, because they report what a
# runtime does, or cannot distinguish it from bugs:
#   G103       system calls take pointers; go vet checks their use
#   G104       errors of cleanup and close, left to staticcheck and review
#   G115       integer conversions, which the kernel's interfaces require
#   G204       the program is AppArmor's parser, found in fixed directories
#   G301 G302  files that a container or another user reads: logs, /etc/hosts,
#              roots of layers, a pinned namespace, a socket for root's group
#   G304 G703  paths chosen by the administrator or the runtime; files that a
#              container may have changed are opened by runtime/rootpath
#   G404       choices that must be uniform, not secret: SELinux's categories
#   G602       an index that is checked in the same condition
GOSEC_OFF := G103,G104,G115,G204,G301,G302,G304,G703,G404,G602

.PHONY: gosec
gosec: $(CACHE)/bin/gosec ## gosec, without the rules listed in GOSEC_OFF
	$(CACHE)/bin/gosec -quiet -exclude=$(GOSEC_OFF) ./cmd/... ./cri/... ./runtime/... ./image/... ./network/...

VULNDB ?= https://vuln.go.dev

.PHONY: vulncheck
vulncheck: build $(CACHE)/bin/govulncheck ## known vulnerabilities in linked modules; VULNDB=https://vuln.go.dev
	@if curl -sSfL -m 20 -o /dev/null $(VULNDB)/index/db.json; then \
		$(CACHE)/bin/govulncheck -db $(VULNDB) ./cmd/...; \
	else \
		echo "NOT CHECKED for known vulnerabilities: the database $(VULNDB) is unreachable"; exit 3; \
	fi

.PHONY: sbom
sbom: build $(CACHE)/bin/cyclonedx-gomod ## bill of materials, bin/crisp.cdx.json and bin/crisp-keeper.cdx.json
	for program in crisp crisp-keeper; do \
		$(CACHE)/bin/cyclonedx-gomod bin -json -licenses -std -version "$(VERSION)" -output bin/$$program.cdx.json bin/$$program || exit 1; \
	done

##### Tests

.PHONY: test
test: needs-test build tools monitoring images demo-image packages programs ## run all tests; TOTALS=FILE receives the counts
	$(CACHE)/bin/suite -totals "$(TOTALS)" $(if $(UNTIL),-until $(UNTIL))

.PHONY: unit
unit: ## run tests that need no root and change nothing, with the race detector
	CGO_ENABLED=1 $(GO) test -short -race ./...

.PHONY: root
root: build $(LAB) images packages ## run all Go tests as root; skips and leaks are failures
	CRISP_STRICT=1 $(GO) test -p 1 ./...

# Tests with attackers: containers that probe and misuse everything they can
# reach, images, registries and clients that ask for too much.
HOSTILE := Hostile|Resident|Neighbours|Cgroups|CVE|Cost|Exposed|CallsAre|Frozen|GroupKill|Links|Procfs|Swap|Race|Deep|Foreign

.PHONY: hostile
hostile: build $(LAB) images ## run containers, images and registries that attack the node
	CRISP_STRICT=1 $(GO) test -p 1 -count 1 -run '$(HOSTILE)' ./runtime/... ./image/... ./network/... ./cri/... ./test/e2e
	CRISP_STRICT=1 $(GO) test -p 1 -count 1 ./test/hostile

FUZZTIME ?= 30s

.PHONY: fuzz
fuzz: ## run each fuzz test for FUZZTIME=30s
	@GO="$(GO)" hack/fuzz $(FUZZTIME)

.PHONY: conformance
conformance: build $(LAB) $(CACHE)/bin/critest images programs ## run critest against bin/crisp
	$(CACHE)/bin/conformance $(ARGS)

.PHONY: bench
bench: build $(LAB) $(CACHE)/bin/critest $(PEERS) criu images programs ## compare with containerd, a quarter of an hour; ARGS=-full
	@$(MAKE) --no-print-directory $(CACHE)/peers/crun/crun || echo "crun could not be fetched from Debian and is not measured"
	$(CACHE)/bin/bench $(ARGS)

# REPORT=1 updates the tables of these in docs/reliability.md.
CRASH = $(GO) test -C test/crash -tags crash -count 1 -timeout 1h $(1) $(if $(REPORT),-report $(CURDIR)/docs/reliability.md) $(ARGS)

.PHONY: crash
crash: $(LAB) images ## kill daemon and keeper at every failpoint and at random moments
	$(call CRASH,-skip 'TestFault|TestSoak')

.PHONY: faults
faults: $(LAB) images ## faults of plugins, disks, limits, reboots and power cuts
	$(call CRASH,-run TestFault)

.PHONY: soak
soak: $(LAB) images ## create and remove 300 pods (ARGS="-pods 2000") under kills
	$(call CRASH,-run TestSoak)

.PHONY: node
node: build $(LAB) programs monitoring ## test a Kubernetes node with crisp, a quarter of an hour
	$(CACHE)/bin/suite -totals "$(TOTALS)" node

GUEST := build $(addprefix $(CACHE)/bin/,crictl critest registry checkpointctl) $(PLUGINS) criu images
VM := $(GUEST) $(CACHE)/bin/nvidia-cdi-hook programs

.PHONY: vm
vm: $(VM) ## boot Debian 13 with crisp and open a login shell
	$(CACHE)/bin/vm -shell $(ARGS)

.PHONY: vm-test
vm-test: $(VM) deb ## run tests and critest on Debian 13 (ARGS="-release bookworm" or sid): systemd, cgroup v2, AppArmor, SELinux
	$(CACHE)/bin/vm -totals "$(TOTALS)" $(ARGS)

.PHONY: guest
guest: $(GUEST) deb # what runs in a machine
	$(COMPILE) -o $(CACHE)/bin/ ./hack/suite ./test/conformance

# What runs in a machine of another architecture is built into a directory of
# its own, by the same targets.
OTHER = $(MAKE) --no-print-directory GOARCH=$(1) CACHE=$(CACHE)/$(1) BIN=$(CACHE)/$(1)/programs VERSION="$(VERSION)"

.PHONY: vm-test-arm64
vm-test-arm64: ## run the same on arm64, emulated (ARGS="-only runtime/spawn")
	$(call OTHER,arm64) guest
	$(COMPILE) -o $(CACHE)/bin/ ./hack/vm
	$(CACHE)/bin/vm -arch arm64 -totals "$(TOTALS)" $(ARGS)

.PHONY: vm-node
vm-node: kubernetes $(VM) ## test a Kubernetes node on Debian 13, with either cgroup driver
	$(CACHE)/bin/vm -node $(ARGS)

.PHONY: demo
demo: needs-demo build demo-image ## show a pod from pull to removal, with timings
	$(COMPILE) -o $(CACHE)/bin/ ./hack/demo
	@$(CACHE)/bin/demo

.PHONY: needs-demo needs-test
needs-demo needs-test: # reports missing packages, and installs them as root
	@hack/needs $(@:needs-%=%)

##### Tools and images for tests

.PHONY: tools
tools: $(TOOLS) $(PLUGINS) criu ## build crictl, critest, a registry, other tools, the CNI plugins, and fetch CRIU

.PHONY: criu
criu: # what saves processes
	@$(MAKE) --no-print-directory $(CACHE)/criu/criu || echo "CRIU could not be fetched from Debian: checkpoints are not tested"

.PHONY: programs
programs: # programs that run tests
	$(COMPILE) -o $(CACHE)/bin/ ./hack/suite ./hack/demo ./hack/vm ./test/bench ./test/bench/nothing ./test/bench/hold ./test/conformance

.PHONY: images
images: ## build the images that tests pull
	GOARCH= $(GO) run -trimpath ./hack/images -cache $(CACHE) -arch $$($(GO) env GOARCH)

.PHONY: demo-image
demo-image: # the image that the demo pulls
	$(GO) run -trimpath ./hack/images -storage demo -only e2e-test-images/nginx:1.14-2

CRITOOLS_VERSION = $(shell sed -n 's|.*sigs.k8s.io/cri-tools v\([^ ]*\).*|\1|p' hack/tools/criutils/go.mod)
CRITOOLS_FLAGS = -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$(CRITOOLS_VERSION)"

$(CACHE)/bin/crictl: hack/tools/criutils/go.mod
	$(GO) build -C $(<D) -trimpath $(CRITOOLS_FLAGS) -o $(CURDIR)/$@ sigs.k8s.io/cri-tools/cmd/crictl

$(CACHE)/bin/critest: hack/tools/criutils/go.mod
	$(GO) test -C $(<D) -c $(CRITOOLS_FLAGS) -o $(CURDIR)/$@ sigs.k8s.io/cri-tools/cmd/critest

$(CACHE)/bin/registry: hack/tools/registry/go.mod
	$(GO) build -C $(<D) -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ github.com/distribution/distribution/v3/cmd/registry

# Its library for the driver is loaded by cgo.
$(CACHE)/bin/checkpointctl: hack/tools/checkpoint/go.mod
	$(GO) build -C $(<D) -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ github.com/checkpoint-restore/checkpointctl

$(CACHE)/bin/nvidia-cdi-hook: hack/tools/nvidia/go.mod
	CGO_ENABLED=1 CGO_CFLAGS=-w $(GO) build -C $(<D) -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ github.com/NVIDIA/nvidia-container-toolkit/cmd/nvidia-cdi-hook

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
kubernetes: $(CACHE)/kubernetes/kubelet $(CACHE)/kubernetes/coredns ## build Kubernetes, etcd and CoreDNS, takes some minutes

$(CACHE)/kubernetes/kubelet: $(KUBERNETES)
	@mkdir -p $(@D)
	$(GO) build -C $(<D) -trimpath $(KUBERNETES_FLAGS) -o $(CURDIR)/$(@D)/ tool
	mv $(@D)/server $(@D)/etcd
	touch $@

$(CACHE)/kubernetes/coredns: $(wildcard hack/tools/coredns/*)
	$(GO) build -C hack/tools/coredns -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ .

FLANNEL := hack/tools/flannel/go.mod
FLANNEL_VERSION = $(shell sed -n 's|^require github.com/flannel-io/flannel ||p' $(FLANNEL))

.PHONY: flannel
flannel: $(CACHE)/flannel/flanneld $(CACHE)/flannel/flannel # a cluster network, for make node

# From a copy of its module without the backends udp and tencentvpc, which pods on
# nodes of one network do not need: the first is partly in C, the second needs an
# SDK whose module is not on every proxy.
$(CACHE)/flannel/flanneld: $(FLANNEL)
	@rm -rf $(@D)/src && mkdir -p $(@D)
	$(GO) mod download -C $(<D) github.com/flannel-io/flannel
	cp -r "$$($(GO) list -C $(<D) -m -f '{{.Dir}}' github.com/flannel-io/flannel)" $(@D)/src && chmod -R u+w $(@D)/src
	rm -r $(@D)/src/pkg/backend/udp $(@D)/src/pkg/backend/tencentvpc && sed -i '/backend\/udp"/d; /backend\/tencentvpc"/d' $(@D)/src/main.go
	$(GO) build -C $(@D)/src -trimpath -ldflags "-s -w -X github.com/flannel-io/flannel/pkg/version.Version=$(FLANNEL_VERSION)" -o $(CURDIR)/$@ .
	rm -rf $(@D)/src

# Its plugin, from the time when it was one of the reference plugins: the module in
# which it is now is not on every proxy.
$(CACHE)/flannel/flannel: hack/tools/flannelcni/go.mod
	@mkdir -p $(@D)
	$(GO) build -C $(<D) -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ github.com/containernetworking/plugins/plugins/meta/flannel

.PHONY: node-conformance
node-conformance: build $(LAB) kubernetes images $(CACHE)/kubernetes/e2e_node.test ## run Kubernetes' node conformance suite, an hour
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
	@pkg-config --exists libseccomp || echo "libseccomp-dev is missing: runc is built without seccomp, which makes it a little faster"
	CGO_ENABLED=1 $(GO) build -C $(<D) -tags "$$(pkg-config --exists libseccomp && echo seccomp)" \
		-ldflags "-s -w -X main.version=$(call peer_version,github.com/opencontainers/runc)" -o $(CURDIR)/$@ github.com/opencontainers/runc

# crun is Debian's, unpacked and not installed, with a library that may be missing
# on the machine.
$(CACHE)/peers/crun/crun:
	@rm -rf $(@D) && mkdir -p $(@D)/lib
	cd $(@D) && apt-get download -q crun libyajl2 && for p in *.deb; do dpkg-deb -x "$$p" .; done
	cp $(@D)/usr/lib/*/libyajl.so* $(@D)/lib/ && cp $(@D)/usr/bin/crun $@

# CRIU with its libraries from Debian's development suite: that of the release that
# this is built on may be too old. The script that runs it works in any directory.
$(CACHE)/criu/criu: hack/criu $(CACHE)/criu/root
	install -m 755 $< $@

CRIU_APT = -o Dir::Etc::sourcelist=$(abspath $(@D))/sources.list -o Dir::Etc::sourceparts=/dev/null \
	-o Dir::State::lists=$(abspath $(@D))/lists -o Dir::Cache=$(abspath $(@D))/apt -o Acquire::Languages=none \
	-o APT::Architecture=$$($(GO) env GOARCH) -o APT::Architectures=$$($(GO) env GOARCH)

$(CACHE)/criu/root:
	@rm -rf $(@D) && mkdir -p $(@D)/lists/partial $(@D)/apt/archives/partial $(@D)/debs $@.new
	echo "deb http://deb.debian.org/debian sid main" > $(@D)/sources.list && apt-get $(CRIU_APT) -q update
	cd $(@D)/debs && apt-get $(CRIU_APT) -q download $$(apt-cache $(CRIU_APT) depends --recurse --no-recommends --no-suggests \
		--no-conflicts --no-breaks --no-replaces --no-enhances criu | grep '^[a-z]' | sort -u)
	for p in $(@D)/debs/*.deb; do dpkg-deb -x "$$p" $@.new || exit 1; done
	rm -rf $(@D)/lists $(@D)/apt $(@D)/debs && mv $@.new $@

##### Monitoring

# Debian's, unpacked and not installed: its package would start a service.
.PHONY: monitoring
monitoring: # fetches what tests of the alert rules and the board need
	@$(MAKE) --no-print-directory $(CACHE)/bin/promtool || echo "prometheus could not be fetched from Debian: alert rules and board cannot be tested"

$(CACHE)/bin/promtool:
	@rm -rf $(CACHE)/prometheus && mkdir -p $(CACHE)/prometheus $(@D)
	cd $(CACHE)/prometheus && { apt-get download -q prometheus || { apt-get -qq update && apt-get download -q prometheus; }; } && dpkg-deb -x prometheus_*.deb .
	mv $(CACHE)/prometheus/usr/bin/prometheus $(CACHE)/prometheus/usr/bin/promtool $(@D)
	@rm -rf $(CACHE)/prometheus && touch $@

.PHONY: board
board: build $(CACHE)/bin/registry images monitoring ## draw the board with the data of a load, five minutes; ARGS="-for 1m -picture FILE"
	$(COMPILE) -o $(CACHE)/bin/board ./hack/monitoring
	$(CACHE)/bin/board $(ARGS)

.PHONY: clean
clean: ## remove build output, but not the cache
	rm -rf bin dist

.PHONY: distclean
distclean: clean ## remove the cache too
	rm -rf $(CACHE)
