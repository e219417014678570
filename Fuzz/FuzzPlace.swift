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

    /// A safetensors file from its header's text and its data.
    static func safetensors(header: [UInt8], data: [UInt8]) -> [UInt8] {
        var writer = ByteWriter()
        writer.write(UInt64(header.count))
        writer.write(raw: header)
        writer.write(raw: data)
        return writer.bytes
    }
}

/// Texts, each ended by a zero byte, and the bytes behind the last.
func fuzzParts(_ input: [UInt8], texts: Int) -> (texts: [[UInt8]], rest: [UInt8]) {
    var parts = input.split(separator: 0, maxSplits: texts, omittingEmptySubsequences: false).map { Array($0) }
    while parts.count <= texts { parts.append([]) }
    return (Array(parts[..<texts]), parts[texts])
}
