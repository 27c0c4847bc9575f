// The one place that includes <linux/kvm.h>.
//
// The header of linux-libc-dev 6.1 is wrong in C++: __DECLARE_FLEX_ARRAY puts an empty struct
// before the array, which has size 0 in C and size 1 in C++. Six structures grow by it, and with
// them the ioctl numbers, whose encoding holds the size; the kernel then answers EINVAL. Here the
// macro is replaced by a plain flexible array while the header is read. The assertions below hold
// for headers that do not have the defect, too.

#pragma once

#include <linux/ioctl.h>
#include <linux/stddef.h>
#include <linux/types.h>

#pragma push_macro("__DECLARE_FLEX_ARRAY")
#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[]
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#pragma pop_macro("__DECLARE_FLEX_ARRAY")

static_assert(sizeof(kvm_cpuid2) == 8);
static_assert(sizeof(kvm_msrs) == 8);
static_assert(sizeof(kvm_msr_list) == 4);
static_assert(sizeof(kvm_xsave) == 4096);
static_assert(sizeof(kvm_irq_routing) == 8);
static_assert(sizeof(kvm_signal_mask) == 4);
static_assert(KVM_GET_SUPPORTED_CPUID == 0xc008ae05);
static_assert(KVM_GET_MSR_INDEX_LIST == 0xc004ae02);
static_assert(KVM_GET_MSRS == 0xc008ae88 && KVM_SET_MSRS == 0x4008ae89);
static_assert(KVM_SET_CPUID2 == 0x4008ae90 && KVM_GET_CPUID2 == 0xc008ae91);
static_assert(KVM_GET_XSAVE == 0x9000aea4 && KVM_SET_XSAVE == 0x5000aea5);
