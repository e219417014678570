/// What the sparse codecs share: which values are kept, and how their positions are written and read.

import Adapters
import CKernels
import Primitives

/// The share of values that a sparse codec keeps: above 0, at most 1.
struct Density: Sendable, Hashable, CustomStringConvertible {
    let share: Double

    init(_ share: Double) {
        precondition(share > 0 && share <= 1, "the density is \(share): it must be above 0 and at most 1")
        self.share = share
    }

    init(parsing text: Substring) throws(Failure) {
        guard let share = Self.number(text), share > 0, share <= 1 else {
            throw Failure(
                .usage, "\"\(text)\" is the share of values that are kept: give a number above 0 and at most 1, as in 0.1")
        }
        self.share = share
    }

    /// How many of `count` values are kept at most: the nearest integer, halves to even, at least one.
    func keptCount(of count: Int) -> Int {
        min(count, max(1, Int((share * Double(count)).rounded(.toNearestOrEven))))
    }

    var description: String { Self.text(share) }

    /// A finite decimal number.
    static func number(_ text: Substring) -> Double? {
        guard text.utf8.allSatisfy({ "0123456789.e-+".utf8.contains($0) }), let value = Double(text), value.isFinite else {
            return nil
        }
        return value
    }

    /// The shortest text that is this number again; 1 and not 1.0.
    static func text(_ value: Double) -> String {
        let text = "\(value)"
        return text.hasSuffix(".0") ? String(text.dropLast(2)) : text
    }
}

/// What stands before each tensor's bits:
///
///     coding u8 = 0 | reserved u8 = 0 | Golomb parameter u16 | kept u32 | scale f32 | byte count u32
///
/// A tensor of which nothing is kept has parameter 1 and zeros in all other fields.
struct SparseHeader {
    static let byteCount = 16

    let parameter: UInt32
    let kept: Int
    let scale: Float
    /// Where this tensor's bytes begin in the payload, and how many there are.
    let offset: Int
    let byteCount: Int
}

enum SparsePayload {
    /// The Golomb parameter is a u16, and at most this power of two.
    static let largestParameterBits = 15

    /// The least and the most bytes, given the most after a tensor's header.
    static func byteCounts(_ layout: AdapterLayout, most: (AdapterTensor) -> Int) -> ClosedRange<Int> {
        let headers = layout.tensors.count * SparseHeader.byteCount
        return headers...headers + layout.tensors.reduce(0) { $0 + most($1) }
    }

    /// The most bits of `kept` records among `count` positions.
    ///
    /// The gaps add up to count - kept at most. With a parameter of 2^b their quotients add up to at most a 2^b-th of that,
    /// and a record has b + 1 bits more, and the sign: the coder finds the best b for the actual gaps, which is no worse
    /// than the best for these sums. Fewer kept values take fewer bits.
    static func mostBits(kept: Int, of count: Int, signs: Bool) -> Int {
        (0...largestParameterBits).map { (count - kept) >> $0 + kept * ($0 + 1 + (signs ? 1 : 0)) }.min()!
    }

    /// Positions of the `count` largest magnitudes of a vector, ascending, for each of the tensors that it consists of;
    /// ties go to the lower index, and magnitudes whose bits are `floor` or less are left out.
    static func largest(
        _ count: Int, of vector: UnsafeBufferPointer<Float>, tensors: [Range<Int>], floor: UInt32, path: Int32
    ) -> [[UInt32]] {
        guard let base = vector.baseAddress, count > 0 else { return tensors.map { _ in [] } }
        var threshold: UInt32 = 0
        var ties = 0
        tributary_select(path, base, vector.count, count, floor, &threshold, &ties)
        var left = count
        return tensors.map { tensor in
            precondition(tensor.count <= 1 << 30, "a tensor has \(tensor.count) values, and its bytes are counted in 32 bits")
            let slack = 16  // a whole vector is written where its first lanes are kept
            let positions = [UInt32](unsafeUninitializedCapacity: min(left, tensor.count) + slack) { target, initialized in
                initialized = tributary_gather(
                    path, base + tensor.lowerBound, tensor.count, threshold, &ties, target.baseAddress!)
            }
            left -= positions.count
            return positions
        }
    }

    /// Header and bits of one tensor; `valueBytes` of each kept value follow, and are counted.
    static func write(
        _ positions: [UInt32], of tensor: UnsafeBufferPointer<Float>, scale: Float, signs: Bool, valueBytes: Int = 0,
        _ writer: inout ByteWriter
    ) {
        var (parameter, power): (UInt32, UInt32) = (1, 1)
        var powerBits = 0
        var bits = 0
        if !positions.isEmpty {
            bits = tributary_golomb_choose(positions, positions.count, &parameter, &power, &powerBits)
            if signs { bits += positions.count }
        }
        let byteCount = (bits + 7) / 8
        writer.write(UInt8(0))
        writer.write(UInt8(0))
        writer.write(UInt16(parameter))
        writer.write(UInt32(positions.count))
        writer.write(positions.isEmpty ? 0 : scale)
        writer.write(UInt32(byteCount + valueBytes * positions.count))
        guard !positions.isEmpty else { return }
        let slack = 8  // the coder stores whole words
        writer.write(count: byteCount, slack: slack) { target in
            tributary_golomb_encode(positions, positions.count, parameter, signs ? tensor.baseAddress : nil, target)
        }
    }

    /// Every tensor's header; together they account for every byte of the payload.
    static func readHeaders(_ payload: UnsafeRawBufferPointer, _ layout: AdapterLayout) throws(DecodeError) -> [SparseHeader] {
        var headers: [SparseHeader] = []
        headers.reserveCapacity(layout.tensors.count)
        var offset = 0
        for index in layout.tensors.indices {
            guard payload.count - offset >= SparseHeader.byteCount else {
                throw .wrongPayload(expected: offset + SparseHeader.byteCount, found: payload.count)
            }
            let coding: UInt16 = payload.integer(at: offset)
            guard coding == 0 else { throw .wrongHeader(tensor: index, field: "coding", value: "\(coding)") }
            let parameter: UInt16 = payload.integer(at: offset + 2)
            let kept: UInt32 = payload.integer(at: offset + 4)
            let scale = payload.float(at: offset + 8)
            let byteCount = Int(payload.integer(at: offset + 12, as: UInt32.self))
            guard parameter >= 1, parameter <= 1 << largestParameterBits, kept > 0 || parameter == 1 else {
                throw .wrongHeader(tensor: index, field: "Golomb parameter", value: "\(parameter)")
            }
            offset += SparseHeader.byteCount
            guard byteCount <= payload.count - offset, kept > 0 || byteCount == 0 else {
                throw .wrongPayload(expected: offset + byteCount, found: payload.count)
            }
            headers.append(
                SparseHeader(
                    parameter: UInt32(parameter), kept: Int(kept), scale: scale, offset: offset, byteCount: byteCount))
            offset += byteCount
        }
        guard offset == payload.count else { throw .wrongPayload(expected: offset, found: payload.count) }
        return headers
    }
}

extension ClosedRange<Int> {
    /// The same range with a higher end.
    func extended(by count: Int) -> ClosedRange<Int> { lowerBound...upperBound + count }
}
