/// The tokens of the model: content by id and id by content, both as bytes.

import Primitives

struct Vocabulary: Sendable {
    private var ids: ByteTable
    /// Where token id stands in `ids`, -1 for an id that no token has.
    private var entries: [Int32] = []

    /// - Parameter part: "model.vocab", an object from content to id.
    init(_ part: FilePart) throws(Failure) {
        guard let members = part.value.members else { throw part.wrong("an object") }
        ids = ByteTable(capacity: members.count)
        for member in members {
            let id = try part.tokenID(member.value, "\"\(member.key.prefix(40))\" in \"\(part.name)\"")
            var key = member.key
            let inserted = key.withUTF8 { ids.insert($0, id) }
            if Int(id) >= entries.count {
                entries.append(contentsOf: repeatElement(-1, count: Int(id) + 1 - entries.count))
            }
            guard inserted, entries[Int(id)] < 0 else {
                throw part.failure("\"\(part.name)\" gives the id \(id) to two tokens, \"\(member.key.prefix(40))\" is one")
            }
            entries[Int(id)] = Int32(ids.count - 1)
        }
    }

    /// Bytes of the longest token.
    var longestToken: Int { (0..<ids.count).reduce(0) { max($0, ids.key($1).count) } }

    /// The largest id + 1.
    var size: Int { entries.count }

    func id(_ token: ArraySlice<UInt8>) -> Int32? { ids.value(of: token) }
    func id(_ token: UnsafeBufferPointer<UInt8>) -> Int32? { ids.value(of: token) }

    func id(_ token: String) -> Int32? {
        var token = token
        return token.withUTF8 { ids.value(of: $0) }
    }

    /// Nil for an id that no token has.
    func token(_ id: Int32) -> ArraySlice<UInt8>? {
        guard id >= 0, Int(id) < entries.count, entries[Int(id)] >= 0 else { return nil }
        return ids.key(Int(entries[Int(id)]))
    }
}
