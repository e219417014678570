/// Writes a GGUF file (version 3) of metadata and tensors that fit in memory: adapters, and models for tests.

import Primitives

/// A metadata value to be written.
public enum GGUFEntry: Sendable {
    case uint32(UInt32)
    case float32(Float)
    case boolean(Bool)
    case text(String)
    case texts([String])
    case integers([Int32])
    case floats([Float])
}

/// A tensor to be written; `bytes` are its elements in row-major order.
public struct GGUFTensor: Sendable {
    public let name: String
    public let type: TensorType
    public let shape: [Int]
    public let bytes: [UInt8]

    public init(name: String, type: TensorType, shape: [Int], bytes: [UInt8]) {
        self.name = name
        self.type = type
        self.shape = shape
        self.bytes = bytes
    }

    /// A tensor of float32.
    public init(name: String, shape: [Int], floats: [Float]) {
        self.init(name: name, type: .f32, shape: shape, bytes: floats.withUnsafeBytes { Array($0) })
    }
}

/// Writes beside its place, and renames when complete. Tensors lie at multiples of 32 bytes.
public func writeGGUF(_ path: String, metadata: [(key: String, value: GGUFEntry)], tensors: [GGUFTensor]) throws(Failure) {
    var writer = ByteWriter()
    func text(_ text: String) {
        writer.write(UInt64(text.utf8.count))
        writer.write(raw: text.utf8)
    }
    func type(_ type: GGUFValueType) { writer.write(type.rawValue) }
    func array<Element>(_ element: GGUFValueType, _ values: [Element], _ body: (Element) -> Void) {
        type(.array)
        type(element)
        writer.write(UInt64(values.count))
        for value in values { body(value) }
    }
    writer.write(raw: GGUFFile.magic)
    writer.write(UInt32(3))
    writer.write(UInt64(tensors.count))
    writer.write(UInt64(metadata.count))
    for entry in metadata {
        text(entry.key)
        switch entry.value {
        case .uint32(let value):
            type(.uint32)
            writer.write(value)
        case .float32(let value):
            type(.float32)
            writer.write(value)
        case .boolean(let value):
            type(.bool)
            writer.write(UInt8(value ? 1 : 0))
        case .text(let value):
            type(.string)
            text(value)
        case .texts(let values): array(.string, values, text)
        case .integers(let values): array(.int32, values) { writer.write($0) }
        case .floats(let values): array(.float32, values) { writer.write($0) }
        }
    }
    let alignment = 32
    var offset = 0
    for tensor in tensors {
        let count = tensor.shape.reduce(1, *)
        precondition(
            tensor.bytes.count == count / tensor.type.blockElements * tensor.type.size,
            "tensor \(tensor.name) does not have the bytes of its shape")
        guard let number = tensor.type.numberInGGUF else {
            preconditionFailure("GGUF has no type \(tensor.type.rawValue) here")
        }
        text(tensor.name)
        writer.write(UInt32(tensor.shape.count))
        for size in tensor.shape.reversed() { writer.write(UInt64(size)) }
        writer.write(number)
        writer.write(UInt64(offset))
        offset += (tensor.bytes.count + alignment - 1) / alignment * alignment
    }
    func pad() { while writer.bytes.count % alignment != 0 { writer.write(UInt8(0)) } }
    for tensor in tensors {
        pad()
        writer.write(raw: tensor.bytes)
    }
    pad()
    try writeFile(path, writer.bytes)
}
