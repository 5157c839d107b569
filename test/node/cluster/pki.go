package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the cluster's certificates. It lives as long as the test.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority creates an authority and writes its certificate to dir/ca.crt.
func newAuthority(dir string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}

	a := &authority{dir: dir, key: key}
	template := certificate(pkix.Name{CommonName: "crisp-test"})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature

	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}

	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("make certificate authority: %w", err)
	}
	return a, writePEM(a.file("ca.crt"), "CERTIFICATE", der)
}

func certificate(subject pkix.Name) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: subject,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
	}
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// issue creates a key and a certificate, for clients and, if it has names, for
// a server: dir/NAME.crt and dir/NAME.key.
func (a *authority) issue(name string, subject pkix.Name, dns []string, ips ...net.IP) error {
	key, err := a.newKey(name)
	if err != nil {
		return err
	}
	template := certificate(subject)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	template.DNSNames, template.IPAddresses = dns, ips
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign certificate of %s: %w", name, err)
	}
	return writePEM(a.file(name+".crt"), "CERTIFICATE", der)
}

// newKey writes a private key to dir/NAME.key and the public one to
// dir/NAME.pub.
func (a *authority) newKey(name string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of %s: %w", name, err)
	}

	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make key of %s: %w", name, err)
	}

	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("make key of %s: %w", name, err)
	}

	if err := writePEM(a.file(name+".key"), "PRIVATE KEY", private); err != nil {
		return nil, err
	}
	return key, writePEM(a.file(name+".pub"), "PUBLIC KEY", public)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: crisp, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: user, user: {client-certificate: %q, client-key: %q}}]
contexts: [{name: crisp, context: {cluster: crisp, user: user}}]
current-context: crisp
`

// client issues a certificate for a user of the API and writes the
// configuration that uses it: dir/NAME.conf.
func (a *authority) client(name, server, user string, groups ...string) error {
	if err := a.issue(name, pkix.Name{CommonName: user, Organization: groups}, nil); err != nil {
		return err
	}
	text := fmt.Appendf(nil, kubeconfig, server, a.file("ca.crt"), a.file(name+".crt"), a.file(name+".key"))
	return os.WriteFile(a.file(name+".conf"), text, 0o600)
}
