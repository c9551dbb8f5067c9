using System.Diagnostics.CodeAnalysis;
using Mustafar.Modules;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Mustafar.Models.Llama;

/// <summary>A vector per token of the vocabulary; also the output head, if the two are tied.</summary>
public sealed class TokenEmbedding : nn.Module<Tensor, Tensor>
{
#pragma warning disable IDE1006 // the field's name is the key of the state dictionary
    private readonly Parameter weight;
#pragma warning restore IDE1006

    /// <summary>Makes a layer whose weight is not initialised.</summary>
    /// <param name="vocabSize">Number of tokens.</param>
    /// <param name="hiddenSize">Elements of a vector.</param>
    /// <param name="dtype">Type of the weight.</param>
    /// <param name="device">Device of the weight.</param>
    // RegisterComponents finds the weight by reflection; compiled ahead of time, an application has only the fields that are named.
    [DynamicDependency(DynamicallyAccessedMemberTypes.NonPublicFields, typeof(TokenEmbedding))]
    public TokenEmbedding(int vocabSize, int hiddenSize, ScalarType dtype, Device device)
        : base(nameof(TokenEmbedding))
    {
        weight = Weights.Empty([vocabSize, hiddenSize], dtype, device);
        RegisterComponents();
    }

    /// <summary>The vectors, [vocab_size, hidden_size].</summary>
    public Parameter Weight => weight;

    /// <summary>The vectors of tokens.</summary>
    /// <param name="ids">Int64 [batch, n].</param>
    /// <returns>[batch, n, hidden_size].</returns>
    public override Tensor forward(Tensor ids)
    {
        using DisposeScope scope = NewDisposeScope();
        return weight.index_select(0, ids.reshape(-1)).reshape(ids.size(0), ids.size(1), weight.size(1)).MoveToOuterDisposeScope();
    }

    /// <summary>The scores of all tokens: the product with every vector.</summary>
    /// <param name="hidden">[.., hidden_size].</param>
    /// <returns>[.., vocab_size].</returns>
    public Tensor Project(Tensor hidden) => nn.functional.linear(hidden, weight);
}
