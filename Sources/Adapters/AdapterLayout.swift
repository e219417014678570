/// The adapter as data: which tensors there are, in which order, and where each lies in one flat array of floats.

import Primitives

/// What a tensor is for. Stored with it and never inferred from its shape.
public enum AdapterRole: UInt8, Codable, Sendable, CaseIterable {
    /// A of LoRA and LoRA-SB, `[rank, inputs]`.
    case loraA = 1
    /// B of LoRA and LoRA-SB, `[outputs, rank]`.
    case loraB = 2
    /// R of LoRA-SB, `[rank, rank]`.
    case core = 3
    /// A of FLoRA's global correction, `[rank, inputs]`, with every weight and scale folded in.
    case stackA = 4
    /// B of FLoRA's global correction, `[outputs, rank]`.
    case stackB = 5
    /// A weight of the task's head, `[rows, columns]`, trained whole.
    case headWeight = 6
    /// A bias of the task's head, `[rows, 1]`, trained whole.
    case headBias = 7

    /// Whether it belongs to the task's head: trained and averaged whole, of rank 0 and scale 1.
    public var isHead: Bool { self == .headWeight || self == .headBias }
}

/// One tensor of an adapter.
public struct AdapterTensor: Hashable, Codable, Sendable {
    /// Path of the adapted linear map: `model.layers.0.self_attn.q_proj`; of a head, the path of its map: `classifier`.
    public let map: String
    public let role: AdapterRole
    public let rows: Int
    public let columns: Int
    /// 0 for a head's tensors.
    public let rank: Int
    /// s in W + s B A, or W + s B R A; 1 for a stack and for a head.
    public let scale: Float

    public init(map: String, role: AdapterRole, rows: Int, columns: Int, rank: Int, scale: Float) {
        self.map = map
        self.role = role
        self.rows = rows
        self.columns = columns
        self.rank = rank
        self.scale = scale
    }

    public var count: Int { rows * columns }
}

/// Names, shapes, order and hash of an adapter's tensors: what both sides must agree on.
public struct AdapterLayout: Equatable, Sendable {
    public let tensors: [AdapterTensor]
    /// Where each tensor begins in the flat values, row-major.
    public let offsets: [Int]
    public let parameterCount: Int
    /// SHA-256 over every tensor's map, role, shape, rank and scale, in order.
    public let digest: Digest

    public init(_ tensors: [AdapterTensor]) {
        self.tensors = tensors
        var offsets: [Int] = []
        var total = 0
        var builder = DigestBuilder()
        for tensor in tensors {
            offsets.append(total)
            total += tensor.count
            builder.update(counted: tensor.map)
            var fields = ByteWriter()
            fields.write(tensor.role.rawValue)
            fields.write(UInt64(tensor.rows))
            fields.write(UInt64(tensor.columns))
            fields.write(UInt64(tensor.rank))
            fields.write(tensor.scale)
            builder.update(fields.bytes)
        }
        self.offsets = offsets
        parameterCount = total
        digest = builder.finish()
    }

    public static func == (left: AdapterLayout, right: AdapterLayout) -> Bool { left.digest == right.digest }

    /// Where the tensor at `index` lies in the flat values.
    public func range(_ index: Int) -> Range<Int> { offsets[index]..<offsets[index] + tensors[index].count }

    /// Index of the tensor with this map and role, or nil.
    public func index(map: String, role: AdapterRole) -> Int? {
        tensors.firstIndex { $0.map == map && $0.role == role }
    }
}

/// An adapter's values under a layout.
public struct AdapterState: Equatable, Sendable {
    public let layout: AdapterLayout
    /// `layout.parameterCount` floats, tensor after tensor, row-major.
    public var values: [Float]

    public init(layout: AdapterLayout, values: [Float]) {
        precondition(
            values.count == layout.parameterCount,
            "\(values.count) values for a layout of \(layout.parameterCount)")
        self.layout = layout
        self.values = values
    }

    public init(zeros layout: AdapterLayout) {
        self.init(layout: layout, values: [Float](repeating: 0, count: layout.parameterCount))
    }

    /// The values of the tensor at `index`, row-major.
    public func tensor(_ index: Int) -> ArraySlice<Float> { values[layout.range(index)] }

    /// SHA-256 of the layout's digest and the values' bytes.
    public var digest: Digest {
        var builder = DigestBuilder()
        builder.update(layout.digest.bytes)
        values.withUnsafeBytes { builder.update($0) }
        return builder.finish()
    }
}

/// Everything that a client needs to run an adapted model.
public struct AdapterWeights: Equatable, Sendable {
    /// What training changes: A and B (LoRA), B (FFA-LoRA), R (LoRA-SB).
    public var trained: AdapterState
    /// What it reads beside them: A (FFA-LoRA), B and A (LoRA-SB); nil for LoRA.
    public var frozen: AdapterState?
    /// FLoRA's global correction, a frozen low-rank branch beside the base; nil elsewhere and before the first round.
    public var correction: AdapterState?

    public init(trained: AdapterState, frozen: AdapterState? = nil, correction: AdapterState? = nil) {
        self.trained = trained
        self.frozen = frozen
        self.correction = correction
    }
}
