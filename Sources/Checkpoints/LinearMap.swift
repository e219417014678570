/// A linear map of a transformer block: what an adapter can be put on.

public struct LinearMap: Hashable, Codable, Sendable {
    /// The module's path in the checkpoint, without ".weight": `model.layers.0.self_attn.q_proj`.
    public let name: String
    /// Rows of the weight, `[outputs, inputs]`.
    public let outputs: Int
    /// Columns of the weight.
    public let inputs: Int

    public init(name: String, outputs: Int, inputs: Int) {
        self.name = name
        self.outputs = outputs
        self.inputs = inputs
    }

    /// The last component of the path, by which `--target-modules` names it: `q_proj`.
    public var moduleName: String { String(name[(name.lastIndex(of: ".").map(name.index(after:)) ?? name.startIndex)...]) }
}
