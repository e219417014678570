/// Why a contribution was not counted, or why there is no result. A refused contribution leaves the aggregate as it was.

import Adapters
import Primitives

public enum AggregationError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The same client twice.
    case duplicateClient(String)
    /// Contributions come in ascending order of client names, compared as bytes, so that sums are reproducible.
    case outOfOrder(client: String, after: String)
    /// Negative, NaN or infinite.
    case badWeight(client: String, weight: Double)
    case missingTensor(client: String, map: String, role: AdapterRole)
    case unknownTensor(client: String, map: String, role: AdapterRole)
    case wrongRank(client: String, map: String, role: AdapterRole, expected: Int, found: Int)
    case wrongShape(client: String, map: String, role: AdapterRole, expected: [Int], found: [Int])
    case wrongScale(client: String, map: String, role: AdapterRole, expected: Float, found: Float)
    /// The tensors are the same, in another order or more than once.
    case otherLayout(client: String, expected: Digest, found: Digest)
    /// A value is NaN or infinite, or becomes so when the contributions are combined (client "").
    case notFinite(client: String, map: String, role: AdapterRole, index: Int)
    /// No contribution has a positive weight.
    case nothingToCombine
    /// The weights that were added are not the total that was announced and that every contribution was divided by.
    case otherTotalWeight(expected: Double, found: Double)
    /// A matrix decomposition failed.
    case decomposition(map: String, reason: String)

    public var description: String {
        switch self {
        case .duplicateClient(let client):
            "client \(client) contributed twice to this round: only its first contribution counts"
        case .outOfOrder(let client, let after):
            "client \(client) came after \(after): contributions are combined in ascending order of names"
        case .badWeight(let client, let weight):
            "the weight of client \(client) is \(weight): a weight is a finite number of at least 0"
        case .missingTensor(let client, let map, let role):
            "the contribution of client \(client) lacks \(role) of \(map): it was made for another plan"
        case .unknownTensor(let client, let map, let role):
            "the contribution of client \(client) has \(role) of \(map), which the plan does not adapt: it was made for another plan"
        case .wrongRank(let client, let map, let role, let expected, let found):
            "\(role) of \(map) from client \(client) has rank \(found) and the plan says \(expected)"
        case .wrongShape(let client, let map, let role, let expected, let found):
            "\(role) of \(map) from client \(client) has shape \(found) and the plan says \(expected)"
        case .wrongScale(let client, let map, let role, let expected, let found):
            "\(role) of \(map) from client \(client) has scale \(found) and the plan says \(expected)"
        case .otherLayout(let client, let expected, let found):
            "the contribution of client \(client) has layout \(found.short) and the plan's is \(expected.short): its tensors are in another order"
        case .notFinite("", let map, let role, let index):
            "value \(index) of \(role) of \(map) is no longer a finite number once the contributions are combined: lower the learning rate"
        case .notFinite(let client, let map, let role, let index):
            "value \(index) of \(role) of \(map) from client \(client) is not a finite number: its training diverged, lower the learning rate"
        case .nothingToCombine:
            "no contribution of this round has a positive weight, so that there is nothing to combine: check that the clients have training examples"
        case .otherTotalWeight(let expected, let found):
            "the weights of this round add up to \(found) and \(expected) was announced: every announced client must be added"
        case .decomposition(let map, let reason):
            "the global correction of \(map) could not be brought below the rank cap: \(reason)"
        }
    }
}
