package link

import (
	"errors"
	"fmt"
	"math"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// queueTime is how long a packet may wait for its turn.
	queueTimeMilliseconds = 25
	// leastBurst lets one packet of any device through, in bytes.
	leastBurst = 32 << 10
	// burstShare is the share of a second's bytes that may pass at once if no burst
	// was asked for.
	burstShare = 20
)

// Limit limits one direction, in bits per second and bits; a Rate of 0 does not.
// With a Burst of 0 one is chosen.
type Limit struct{ Rate, Burst uint64 }

// Shape limits the bandwidth of an attachment, in the pod's view: ingress is what it
// receives. What a pod sends is queued in a device of its own (ifb), since the kernel
// queues only what leaves an interface.
func (h *Host) Shape(id, ifName string, ingress, egress Limit) error {
	host, err := h.handle.LinkByName(Name(id, ifName))
	if err != nil {
		return fmt.Errorf("limit bandwidth: %w", err)
	}
	if ingress.Rate > 0 {
		if err := h.queue(host, ingress); err != nil {
			return fmt.Errorf("limit what the pod receives: %w", err)
		}
	}
	if egress.Rate > 0 {
		if err := h.queueSent(host, hashed(shapePrefix, id, ifName), egress); err != nil {
			return fmt.Errorf("limit what the pod sends: %w", err)
		}
	}
	return nil
}

// queue limits what leaves an interface by a token bucket.
func (h *Host) queue(l netlink.Link, limit Limit) error {
	rate := max(limit.Rate/8, 1)
	burst := limit.Burst / 8
	// The largest number means that only the rate counts; so long a burst would
	// be no limit, and overflows the kernel's clock.
	if burst == 0 || burst >= math.MaxInt32/8 {
		burst = max(rate/burstShare, leastBurst)
	}

	err := h.handle.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Buffer:     netlink.Xmittime(rate, uint32(burst)),
		Limit:      uint32(min(rate*queueTimeMilliseconds/1000+burst, math.MaxUint32)),
	})
	return unsupported(err, "sch_tbf")
}

// queueSent redirects what arrives from the pod to a device that queues it.
func (h *Host) queueSent(host netlink.Link, name string, limit Limit) error {
	attrs := netlink.LinkAttrs{Name: name, MTU: host.Attrs().MTU, TxQLen: -1, Flags: net.FlagUp}
	if err := h.handle.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return unsupported(err, "ifb")
	}
	device, err := h.handle.LinkByName(name)
	if err != nil {
		return err
	}
	if err := h.handle.LinkSetUp(device); err != nil {
		return err
	}
	if err := h.queue(device, limit); err != nil {
		return err
	}

	index := host.Attrs().Index
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	if err := h.handle.QdiscReplace(ingress); err != nil {
		return unsupported(err, "sch_ingress")
	}
	// Without a selector it matches every packet.
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: ingress.Handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		RedirIndex:  device.Attrs().Index, ClassId: netlink.MakeHandle(1, 1),
	}
	return unsupported(h.handle.FilterReplace(filter), "cls_u32 or act_mirred")
}
