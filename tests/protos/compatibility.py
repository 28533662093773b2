"""What of a contract an older caller can no longer do with a newer one."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf import descriptor_pb2 as d

PACKAGE = "curfew.v1"


def breaks(old: d.FileDescriptorSet, new: d.FileDescriptorSet) -> list[str]:
    """One line for each thing of the old contracts that is gone, or means another thing on the wire or in
    code generated from it: messages, fields (by number, name, type, label, presence and oneof), enums and
    their values, services, methods.
    """
    theirs, ours = _Contract(old), _Contract(new)
    return [*_messages(theirs, ours), *_enums(theirs, ours), *_methods(theirs, ours)]


class _Contract:
    """The package's definitions, by full name."""

    def __init__(self, files: d.FileDescriptorSet) -> None:
        self.messages: dict[str, d.DescriptorProto] = {}
        self.enums: dict[str, d.EnumDescriptorProto] = {}
        self.methods: dict[str, d.MethodDescriptorProto] = {}
        for file in files.file:
            if file.package == PACKAGE:
                self._take(file.package, file.message_type, file.enum_type)
                for service in file.service:
                    for method in service.method:
                        self.methods[f"{file.package}.{service.name}.{method.name}"] = method

    def _take(self, within: str, messages: object, enums: object) -> None:
        for enum in enums:  # type: ignore[attr-defined]  # repeated fields of two descriptors
            self.enums[f"{within}.{enum.name}"] = enum
        for message in messages:  # type: ignore[attr-defined]
            self.messages[f"{within}.{message.name}"] = message
            self._take(f"{within}.{message.name}", message.nested_type, message.enum_type)


def _messages(old: _Contract, new: _Contract) -> Iterator[str]:
    for name, message in old.messages.items():
        if name not in new.messages:
            yield f"{name} is gone"
            continue
        fields = {field.number: field for field in new.messages[name].field}
        for field in message.field:
            where = f"{name}.{field.name} = {field.number}"
            if field.number not in fields:
                yield f"{where} is gone"
            elif (was := _field(message, field)) != (now := _field(new.messages[name], fields[field.number])):
                yield f"{where} was {was}, is {now}"


def _field(message: d.DescriptorProto, field: d.FieldDescriptorProto) -> tuple[object, ...]:
    """All of a field that its users rely on."""
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
    kind = d.FieldDescriptorProto.Type.Name(field.type)
    label = d.FieldDescriptorProto.Label.Name(field.label)
    return field.name, kind, field.type_name, label, field.proto3_optional, oneof


def _enums(old: _Contract, new: _Contract) -> Iterator[str]:
    for name, enum in old.enums.items():
        if name not in new.enums:
            yield f"{name} is gone"
            continue
        values = {value.number: value.name for value in new.enums[name].value}
        for value in enum.value:
            if values.get(value.number) != value.name:
                yield f"{name}.{value.name} = {value.number} is {values.get(value.number, 'gone')}"


def _methods(old: _Contract, new: _Contract) -> Iterator[str]:
    for name, method in old.methods.items():
        if name not in new.methods:
            yield f"{name} is gone"
        elif (was := _signature(method)) != (now := _signature(new.methods[name])):
            yield f"{name} was {was}, is {now}"


def _signature(method: d.MethodDescriptorProto) -> tuple[object, ...]:
    return method.input_type, method.client_streaming, method.output_type, method.server_streaming
