#!/usr/bin/python3
"""Reads every property of every object with python3-dbus. It prints one line for each."""
import xml.etree.ElementTree as tree

import dbus

NAME = "org.multihomed1"
bus = dbus.SystemBus()
manager = bus.get_object(NAME, "/org/multihomed1")
objects = dbus.Interface(manager, "org.freedesktop.DBus.ObjectManager").GetManagedObjects()
links = dbus.Interface(manager, NAME + ".Manager").ListLinks()
assert {path for _, _, path in links} == set(objects), (links, objects)
for path in ["/org/multihomed1", *objects]:
    proxy = bus.get_object(NAME, path)
    described = tree.fromstring(dbus.Interface(proxy, "org.freedesktop.DBus.Introspectable").Introspect())
    properties = dbus.Interface(proxy, "org.freedesktop.DBus.Properties")
    for interface in described.iter("interface"):
        every = properties.GetAll(interface.get("name"))
        names = [p.get("name") for p in interface.iter("property")]
        assert sorted(names) == sorted(every), (path, names, every)
        for p in interface.iter("property"):
            value = properties.Get(interface.get("name"), p.get("name"))
            assert value == every[p.get("name")] or p.get("name") in ("Passes", "Repairs", "Measurements"), (path, p.get("name"))
            print(path, interface.get("name"), p.get("name"), p.get("type"))
