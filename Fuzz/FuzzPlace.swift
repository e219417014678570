/// Where targets that read files put them.

import Glibc
import Primitives

/// In memory where there is such a place: a thousand files a second are no work for a disk.
enum FuzzPlace {
    static let path = "/dev/shm/tributary-fuzz-\(getpid())"

    /// A folder there, empty but for what this target wrote before.
    static let folder: String = {
        mkdir(path + ".folder", 0o755)
        return path + ".folder"
    }()

    static func write(_ bytes: [UInt8], to path: String = path) -> Bool {
        guard let file = fopen(path, "w") else { return false }
        defer { fclose(file) }
        return fwrite(bytes, 1, bytes.count, file) == bytes.count
    }

    /// What a target says where it could not write its files.
    static let unwritable = "the files of the target cannot be written"

    /// A safetensors file from its header's text and its data, which are repeated to the end that the header states: so the fuzzer
    /// can change shapes without making the data fit, and inputs stay short.
    static func safetensors(header: [UInt8], data: [UInt8]) -> [UInt8] {
        var writer = ByteWriter()
        writer.write(UInt64(header.count))
        writer.write(raw: header)
        let parsed = try? JSONValue(parsing: header)
        let ends = parsed?.members?.compactMap { $0.value["data_offsets"]?.elements?.last?.int } ?? []
        if let end = ends.max(), 1...1 << 16 ~= end, !data.isEmpty {
            for index in 0..<end { writer.write(data[index % data.count]) }
        } else {
            writer.write(raw: data)
        }
        return writer.bytes
    }

    /// A file's header and data, made a tensor at a time.
    struct Tensors {
        private var members: [JSONValue.Member] = []
        private(set) var data: [UInt8] = []

        var names: [String] { members.map(\.key) }
        var header: [UInt8] { Array(JSONValue.object(members).compact.utf8) }

        mutating func add(_ name: String, _ type: String, _ shape: [Int], _ bytes: [UInt8]) {
            let offsets = [data.count, data.count + bytes.count]
            members.append(
                .init(
                    name,
                    .object([
                        .init("dtype", .string(type)), .init("shape", .array(shape.map { .integer($0) })),
                        .init("data_offsets", .array(offsets.map { .integer($0) })),
                    ])))
            data += bytes
        }

        /// Floats of 0.0115.
        mutating func add(_ name: String, _ shape: [Int]) {
            add(name, "F32", shape, [UInt8](repeating: 0x3C, count: 4 * shape.reduce(1, *)))
        }
    }
}

/// Texts, each ended by a zero byte, and the bytes behind the last.
func fuzzParts(_ input: [UInt8], texts: Int) -> (texts: [[UInt8]], rest: [UInt8]) {
    var parts = input.split(separator: 0, maxSplits: texts, omittingEmptySubsequences: false).map { Array($0) }
    while parts.count <= texts { parts.append([]) }
    return (Array(parts[..<texts]), parts[texts])
}
