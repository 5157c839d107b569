package spec

import (
	"errors"
	"os"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crisp/cri/spec/user"
)

// ResolvedUser is the user as which a container's first process runs.
type ResolvedUser struct {
	UID, GID uint32
	// Groups are the supplementary groups, the primary one first.
	Groups []uint32
	// Name and Home are from the image's /etc/passwd, empty without an entry.
	Name, Home string
}

// home returns the home directory, "/" if there is none that is usable.
func (u ResolvedUser) home() string {
	if u.Home == "" || len(u.Home) > maxPath || strings.ContainsAny(u.Home, "\x00\n\r") {
		return "/"
	}
	return u.Home
}

// ResolveUser returns the user as which a container runs: the one that its
// configuration names, or else the image's. Names are looked up in the user
// files of the image with the given root directory.
func ResolveUser(root *os.File, cfg *runtimeapi.ContainerConfig, image string) (ResolvedUser, error) {
	sc := cfg.GetLinux().GetSecurityContext()
	name, err := userName(sc, image)
	if err != nil {
		return ResolvedUser{}, err
	}
	db, err := user.Open(root)
	if err != nil {
		return ResolvedUser{}, invalid("look up the user: %w", err)
	}
	defer db.Close()
	return resolveUser(db, name, sc)
}

// userName applies the precedence of the configuration over the image. The
// image's group applies only together with the image's user.
func userName(sc *runtimeapi.LinuxContainerSecurityContext, image string) (user.Name, error) {
	var name user.Name
	switch {
	case sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "":
		return name, invalid("container with both run_as_user and run_as_username")
	case sc.GetRunAsUser() != nil:
		id, err := number("uid", sc.GetRunAsUser().GetValue())
		if err != nil {
			return name, err
		}
		name.User.Number = id
	case sc.GetRunAsUsername() != "":
		n, err := user.Parse(sc.GetRunAsUsername())
		if err != nil || n.Group != nil || n.User.Name == "" {
			return name, invalid("run_as_username %q", sc.GetRunAsUsername())
		}
		name = n
	case sc.GetRunAsGroup() != nil:
		return name, invalid("container with run_as_group but without a user")
	default:
		n, err := user.Parse(image)
		if err != nil {
			return name, invalid("user of the image: %w", err)
		}
		name = n
	}

	if g := sc.GetRunAsGroup(); g != nil {
		id, err := number("gid", g.GetValue())
		if err != nil {
			return name, err
		}
		name.Group = &user.ID{Number: id}
	}

	return name, nil
}

func number(kind string, v int64) (uint32, error) {
	if v < 0 || v > user.MaxID {
		return 0, invalid("%s %d is out of range", kind, v)
	}
	return uint32(v), nil
}

func resolveUser(db *user.Database, name user.Name, sc *runtimeapi.LinuxContainerSecurityContext) (ResolvedUser, error) {
	account, err := db.Account(name.User)
	if err != nil {
		return ResolvedUser{}, invalidUser(err)
	}

	u := ResolvedUser{UID: account.UID, GID: account.GID, Name: account.Name, Home: account.Home}
	if name.Group != nil {
		if u.GID, err = db.GID(*name.Group); err != nil {
			return ResolvedUser{}, invalidUser(err)
		}
	}

	groups := []uint32{u.GID}
	for _, g := range sc.GetSupplementalGroups() {
		id, err := number("supplemental group", g)
		if err != nil {
			return ResolvedUser{}, err
		}
		groups = append(groups, id)
	}

	switch sc.GetSupplementalGroupsPolicy() {
	case runtimeapi.SupplementalGroupsPolicy_Merge:
		of, err := db.GroupsOf(account.Name)
		if err != nil {
			return ResolvedUser{}, invalidUser(err)
		}
		groups = append(groups, of...)
	case runtimeapi.SupplementalGroupsPolicy_Strict:
	default:
		return ResolvedUser{}, invalid("supplemental groups policy %d", sc.GetSupplementalGroupsPolicy())
	}

	seen := map[uint32]bool{}
	for _, g := range groups {
		if !seen[g] {
			seen[g] = true
			u.Groups = append(u.Groups, g)
		}
	}

	return u, nil
}

func invalidUser(err error) error {
	if errors.Is(err, user.ErrUnknown) || errors.Is(err, user.ErrSyntax) {
		return invalid("user of the container: %w", err)
	}
	return err
}
