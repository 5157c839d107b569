package link

import (
	"errors"
	"fmt"
	"math"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"crisp/network/netdev"
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

// QueueName returns the name of the device in which what a pod sends is queued.
func QueueName(id, ifName string) string { return hashed(shapePrefix, id, ifName) }

// Shape limits the bandwidth of a pod by the node's end of its pair, in the pod's view:
// ingress is what it receives. What a pod sends is queued in a device of its own (ifb),
// called queue, since the kernel queues only what leaves an interface; its hardware
// address is returned, nil if there is none.
func (h *Host) Shape(end, queue string, ingress, egress Limit) (net.HardwareAddr, error) {
	host, err := h.handle.LinkByName(end)
	if err != nil {
		return nil, fmt.Errorf("limit bandwidth: look for interface %s: %w", end, err)
	}
	if ingress.Rate > 0 {
		if err := h.queue(host, ingress); err != nil {
			return nil, fmt.Errorf("limit what the pod receives: %w", err)
		}
	}
	if egress.Rate == 0 {
		return nil, nil
	}
	made, err := h.queueSent(host, queue, egress)
	if err != nil {
		return nil, fmt.Errorf("limit what the pod sends: %w", err)
	}
	return made, nil
}

// CheckShape returns [ErrBroken] unless the limits are there: see [Host.Shape].
func (h *Host) CheckShape(end, queue string, ingress, egress Limit) error {
	for name, limit := range map[string]Limit{end: ingress, queue: egress} {
		if limit.Rate == 0 {
			continue
		}
		l, err := h.handle.LinkByName(name)
		if isNotFound(err) {
			return fmt.Errorf("%w: the node has no interface %s", ErrBroken, name)
		}
		if err != nil {
			return fmt.Errorf("look for interface %s: %w", name, err)
		}

		qdiscs, err := netdev.Dump(func() ([]netlink.Qdisc, error) { return h.handle.QdiscList(l) })
		if err != nil {
			return fmt.Errorf("list queues of interface %s: %w", name, err)
		}
		limited := slices.ContainsFunc(qdiscs, func(q netlink.Qdisc) bool {
			tbf, ok := q.(*netlink.Tbf)
			return ok && tbf.Rate == limit.bytes()
		})
		if !limited {
			return fmt.Errorf("%w: interface %s has lost its bandwidth limit", ErrBroken, name)
		}
	}
	return nil
}

// bytes is the rate in bytes per second.
func (l Limit) bytes() uint64 { return max(l.Rate/8, 1) }

// queue limits what leaves an interface by a token bucket.
func (h *Host) queue(l netlink.Link, limit Limit) error {
	rate := limit.bytes()
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
func (h *Host) queueSent(host netlink.Link, name string, limit Limit) (net.HardwareAddr, error) {
	attrs := netlink.LinkAttrs{Name: name, MTU: host.Attrs().MTU, TxQLen: -1, Flags: net.FlagUp}
	if err := h.handle.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, unsupported(err, "ifb")
	}
	device, err := h.handle.LinkByName(name)
	if err != nil {
		return nil, err
	}
	if err := h.handle.LinkSetUp(device); err != nil {
		return nil, err
	}
	if err := h.queue(device, limit); err != nil {
		return nil, err
	}

	err = h.redirect(host, device)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EEXIST) {
		// There is a filter already, perhaps to a device that is gone.
		err = h.handle.QdiscDel(ingressOf(host))
		if err == nil {
			err = h.redirect(host, device)
		}
	}
	return device.Attrs().HardwareAddr, err
}

// redirect has what arrives on an interface leave by another one.
func (h *Host) redirect(host, device netlink.Link) error {
	ingress := ingressOf(host)
	if err := h.handle.QdiscReplace(ingress); err != nil {
		return unsupported(err, "sch_ingress")
	}
	// Without a selector it matches every packet.
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: host.Attrs().Index, Parent: ingress.Handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		RedirIndex:  device.Attrs().Index, ClassId: netlink.MakeHandle(1, 1),
	}
	return unsupported(h.handle.FilterReplace(filter), "cls_u32 or act_mirred")
}

// ingressOf describes the queue of what arrives on an interface.
func ingressOf(host netlink.Link) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: host.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
}
