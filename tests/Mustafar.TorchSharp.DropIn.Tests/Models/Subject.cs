using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn.Models;

/// <summary>A small model of one package's shape, with random weights, and how its callers run it.</summary>
internal abstract class Subject(nn.Module model) : IDisposable
{
    internal const int Vocabulary = 40;
    internal const int HeadDim = 64;
    internal const int Layers = 2;

    internal nn.Module Model => model;

    internal static string[] Names =>
        ["genai", "genai-tuple", "genai-joint", "genai-phi3", "torchsharp-llama", "llm-sharp", "llm-sharp-fast"];

    /// <summary>Those of which several conversations can go on at once.</summary>
    internal static string[] WithCacheObjects => [.. Names.Where(name => name != "torchsharp-llama")];

    internal static Subject Make(string name, int heads = 4, int kvHeads = 2, ScalarType dtype = ScalarType.Float32)
    {
        random.manual_seed(7);
        Subject subject = name switch
        {
            "genai" => new GenAISubject(heads, kvHeads, GenAI.Positions.Once, dtype),
            "genai-tuple" => new GenAISubject(heads, kvHeads, GenAI.Positions.OnceAsTuple, dtype),
            "genai-joint" => new GenAISubject(heads, kvHeads, GenAI.Positions.InEachLayer, dtype, joint: true),
            "genai-phi3" => new GenAISubject(heads, kvHeads, GenAI.Positions.InEachLayer, dtype, first: true),
            "torchsharp-llama" => new TorchsharpLlamaSubject(heads, kvHeads, dtype),
            "llm-sharp" => new LlmSharpSubject(heads, kvHeads, dtype, fast: false),
            "llm-sharp-fast" => new LlmSharpSubject(heads, kvHeads, dtype, fast: true),
            _ => throw new ArgumentException(name),
        };
        subject.Model.eval();
        return subject;
    }

    /// <summary>The type that the model computes in.</summary>
    internal ScalarType DType => model.parameters().First().dtype;

    /// <summary>The registered attention modules, as the model holds them now.</summary>
    internal nn.Module[] Attentions =>
        [.. model.modules().Where(module => module.GetName().EndsWith("Attention", StringComparison.Ordinal))];

    /// <summary>What a caller makes to begin a conversation.</summary>
    internal abstract object NewConversation(long batch = 1);

    /// <summary>Disposes what <see cref="NewConversation"/> made, as a caller may.</summary>
    internal static void End(object conversation)
    {
        foreach (IDisposable cache in conversation as IEnumerable<IDisposable> ?? [(IDisposable)conversation])
        {
            cache.Dispose();
        }
    }

    /// <summary>Logits [batch, n, vocabulary] of new tokens [batch, n].</summary>
    internal abstract Tensor Logits(Tensor ids, int start, object conversation);

    /// <summary>The model's own dense keys and values, views of [batch, num_kv_heads, length, head_dim], one pair for each layer.</summary>
    internal abstract IEnumerable<(Tensor Keys, Tensor Values)> OwnCaches(object conversation, long batch, int length);

    /// <summary>The logits of a prompt and of single tokens after it.</summary>
    internal Tensor Run(Tensor ids, int prompt) => Run(ids, prompt, NewConversation(ids.shape[0]));

    internal Tensor Run(Tensor ids, int prompt, object conversation)
    {
        List<Tensor> logits = [Step(ids, 0, prompt, conversation)];
        for (int i = prompt; i < ids.shape[1]; i++)
        {
            logits.Add(Step(ids, i, i + 1, conversation));
        }

        return cat(logits, 1);
    }

    /// <summary>The logits of tokens start to end.</summary>
    internal Tensor Step(Tensor ids, int start, int end, object conversation)
    {
        using IDisposable noGrad = no_grad();
        return Logits(ids.narrow(1, start, end - start), start, conversation);
    }

    internal static Tensor Ids(int batch, int tokens, int seed)
    {
        random.manual_seed(seed);
        return randint(0, Vocabulary, [batch, tokens], dtype: ScalarType.Int64);
    }

    public void Dispose() => model.Dispose();
}
