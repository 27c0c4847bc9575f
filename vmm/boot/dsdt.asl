// The DSDT: every device that a machine may have, the same bytes for every machine.
//
// Guests keep what they parse from here in their RAM, and RAM outlives a process in snapshots, so
// this table is an ABI: devices are added, never moved. Which of the virtio slots are in use stands
// in the machine facts (acpi.h), read by _STA. Numbers are those of layout.h; a test compares them.
//
// The signature and revision below count; boot writes the other header fields itself.

DefinitionBlock ("", "DSDT", 2, "QSAVE ", "QUICKSAV", 0x00000001)
{
    Scope (\_SB)
    {
        // kMachineFactsAddress, struct MachineFacts
        OperationRegion (FACT, SystemMemory, 0x000FE000, 0x04)
        Field (FACT, DWordAcc, NoLock, Preserve)
        {
            SLOT, 32
        }

        // What _STA of virtio slot Arg0 answers: present, enabled, shown and working, or absent.
        Method (VSTA, 1, NotSerialized)
        {
            If ((SLOT & (One << Arg0)))
            {
                Return (0x0F)
            }

            Return (Zero)
        }

        // COM1
        Device (COM1)
        {
            Name (_HID, EisaId ("PNP0501"))
            Name (_UID, One)
            Name (_CRS, ResourceTemplate ()
            {
                IO (Decode16, 0x03F8, 0x03F8, 0x01, 0x08)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 4 }
            })
        }

        Device (PWRB)
        {
            Name (_HID, EisaId ("PNP0C0C"))
            Name (_UID, Zero)
        }

        // Microsoft, "Virtual Machine Generation ID". The page is kGenerationIdAddress.
        Device (VGEN)
        {
            Name (_HID, "QSVM0001")
            Name (_CID, Package () { "VM_Gen_Counter", "VM_GEN_COUNTER" })
            Name (_DDN, "VM_Gen_Counter")
            Name (ADDR, Package (0x02) { 0x000FF000, Zero })
        }

        // 5.6.9 "Generic Event Device": one interrupt, and a port that tells what happened
        // (kEventPort; reading it clears what it answers).
        Device (GED)
        {
            Name (_HID, "ACPI0013")
            Name (_UID, Zero)
            Name (_CRS, ResourceTemplate ()
            {
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 9 }
            })
            OperationRegion (EVTR, SystemIO, 0x0604, 0x04)
            Field (EVTR, DWordAcc, NoLock, Preserve)
            {
                EVTS, 32
            }

            Method (_EVT, 1, Serialized)
            {
                Local0 = EVTS
                If ((Local0 & One))  // kEventPowerButton
                {
                    Notify (\_SB.PWRB, 0x80)
                }

                If ((Local0 & 0x02))  // kEventGenerationId
                {
                    Notify (\_SB.VGEN, 0x80)
                }
            }
        }

        // virtio 1.2, 4.2 "Virtio Over MMIO"; LNRO0005 is the ID that Linux's virtio_mmio claims.
        Device (VR00)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x00)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x00)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD0000000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 5 }
            })
        }

        Device (VR01)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x01)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x01)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD0001000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 6 }
            })
        }

        Device (VR02)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x02)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x02)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD0002000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 7 }
            })
        }

        Device (VR03)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x03)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x03)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD0003000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 10 }
            })
        }

        Device (VR04)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x04)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x04)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD0004000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 11 }
            })
        }

        Device (VR05)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x05)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x05)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD0005000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 12 }
            })
        }

        Device (VR06)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x06)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x06)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD0006000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 14 }
            })
        }

        Device (VR07)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x07)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x07)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD0007000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 15 }
            })
        }

        Device (VR08)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x08)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x08)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD0008000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 16 }
            })
        }

        Device (VR09)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x09)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x09)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD0009000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 17 }
            })
        }

        Device (VR0A)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x0A)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x0A)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD000A000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 18 }
            })
        }

        Device (VR0B)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x0B)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x0B)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD000B000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 19 }
            })
        }

        Device (VR0C)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x0C)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x0C)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD000C000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 20 }
            })
        }

        Device (VR0D)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x0D)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x0D)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD000D000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 21 }
            })
        }

        Device (VR0E)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x0E)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x0E)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD000E000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 22 }
            })
        }

        Device (VR0F)
        {
            Name (_HID, "LNRO0005")
            Name (_UID, 0x0F)
            Name (_CCA, One)
            Method (_STA) { Return (VSTA (0x0F)) }
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xD000F000, 0x00001000)
                Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 23 }
            })
        }
    }

    // Power off: the value for the sleep control register (kSleepTypeSoftOff).
    Name (_S5, Package (0x04) { 0x05, Zero, Zero, Zero })
}
