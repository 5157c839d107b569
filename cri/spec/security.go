package spec

import (
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// security applies the seccomp and AppArmor profiles.
func (b *builder) security() error {
	profile, err := b.seccomp()
	if err != nil {
		return err
	}
	b.out.Spec.Linux.Seccomp = profile
	b.out.Spec.Process.ApparmorProfile, err = b.apparmor()
	return err
}

// legacyProfile parses the string form of profiles from before
// [runtimeapi.SecurityProfile]; unset is what "" stands for.
func legacyProfile(s string, unset runtimeapi.SecurityProfile_ProfileType) (*runtimeapi.SecurityProfile, error) {
	switch {
	case s == "":
		return &runtimeapi.SecurityProfile{ProfileType: unset}, nil
	case s == "runtime/default" || s == "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case s == "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case strings.HasPrefix(s, "localhost/"):
		return &runtimeapi.SecurityProfile{
			ProfileType:  runtimeapi.SecurityProfile_Localhost,
			LocalhostRef: strings.TrimPrefix(s, "localhost/"),
		}, nil
	}
	return nil, invalid("security profile %q", s)
}

// seccomp returns the profile, nil for unconfined. A configuration without a
// profile is unconfined: kubelet decides on the default, not the runtime.
func (b *builder) seccomp() (*specs.LinuxSeccomp, error) {
	if b.privileged {
		return nil, nil
	}
	p := b.sc.GetSeccomp()
	if p == nil {
		var err error
		//lint:ignore SA1019 old kubelets still send it
		if p, err = legacyProfile(b.sc.GetSeccompProfilePath(), runtimeapi.SecurityProfile_Unconfined); err != nil {
			return nil, err
		}
	}
	if p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined {
		return nil, nil
	}

	if !b.Host.Seccomp {
		return nil, unsupported("seccomp profile %s", p.GetProfileType())
	}
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return b.Seccomp.Default(b.out.Spec.Process.Capabilities.Bounding), nil
	case runtimeapi.SecurityProfile_Localhost:
		if !path.IsAbs(p.GetLocalhostRef()) {
			return nil, invalid("seccomp profile path %q is not absolute", p.GetLocalhostRef())
		}
		profile, err := b.Seccomp.Load(p.GetLocalhostRef())
		if err != nil {
			return nil, invalid("load seccomp profile: %w", err)
		}
		return profile, nil
	}

	return nil, invalid("seccomp profile type %s", p.GetProfileType())
}

// apparmor returns the name of the profile, "" for none: the container is then
// as unconfined as the daemon. Unlike with seccomp, a configuration without a
// profile means the default profile.
func (b *builder) apparmor() (string, error) {
	p := b.sc.GetApparmor()
	if p == nil {
		var err error
		//lint:ignore SA1019 old kubelets still send it
		if p, err = legacyProfile(b.sc.GetApparmorProfile(), runtimeapi.SecurityProfile_RuntimeDefault); err != nil {
			return "", err
		}
	}

	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_Unconfined:
		return "", nil
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return b.defaultProfile()
	case runtimeapi.SecurityProfile_Localhost:
		// kubelet sends the bare name, other clients the form of the older field.
		return b.loadedProfile(strings.TrimPrefix(p.GetLocalhostRef(), "localhost/"))
	}

	return "", invalid("AppArmor profile type %s", p.GetProfileType())
}

// defaultProfile returns the node's default profile, "" if it has none.
func (b *builder) defaultProfile() (string, error) {
	name := b.Defaults.AppArmorProfile
	if b.privileged || !b.Host.AppArmor || name == "" {
		return "", nil
	}
	loaded, err := b.Node.AppArmorLoaded(name)
	if err != nil {
		return "", err
	}
	if !loaded {
		b.warn("the default AppArmor profile " + name + " is not loaded: the container is not confined by one")
		return "", nil
	}
	return name, nil
}

func (b *builder) loadedProfile(name string) (string, error) {
	switch {
	case name == "":
		return "", invalid("AppArmor profile without a name")
	case !b.Host.AppArmor:
		return "", unsupported("AppArmor profile %q", name)
	}

	loaded, err := b.Node.AppArmorLoaded(name)
	if err != nil {
		return "", err
	}

	if !loaded {
		return "", invalid("AppArmor profile %q is not loaded", name)
	}
	return name, nil
}
