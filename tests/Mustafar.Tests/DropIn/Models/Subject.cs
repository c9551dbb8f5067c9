using static TorchSharp.torch;

namespace Mustafar.Tests.DropIn.Models;

/// <summary>A small model of one package's shape, with random weights, and how its callers run it.</summary>
internal abstract class Subject(nn.Module model) : IDisposable
{
    internal const int Vocabulary = 40;
    internal const int HeadDim = 64;
    internal const int Layers = 2;

    internal nn.Module Model => model;

    internal static string[] Names => ["genai", "genai-joint", "torchsharp-llama", "llm-sharp"];

    internal static Subject Make(string name, int heads = 4, int kvHeads = 2)
    {
        random.manual_seed(7);
        Subject subject = name switch
        {
            "genai" => new GenAISubject(heads, kvHeads, joint: false),
            "genai-joint" => new GenAISubject(heads, kvHeads, joint: true),
            "torchsharp-llama" => new TorchsharpLlamaSubject(heads, kvHeads),
            "llm-sharp" => new LlmSharpSubject(heads, kvHeads),
            _ => throw new ArgumentException(name),
        };
        subject.Model.eval();
        return subject;
    }

    /// <summary>What a caller makes to begin a conversation.</summary>
    internal abstract object NewConversation();

    /// <summary>Logits [batch, n, vocabulary] of new tokens [batch, n].</summary>
    internal abstract Tensor Logits(Tensor ids, int start, object conversation);

    /// <summary>The logits of a prompt and of single tokens after it.</summary>
    internal Tensor Run(Tensor ids, int prompt)
    {
        object conversation = NewConversation();
        return Run(ids, prompt, conversation);
    }

    internal Tensor Run(Tensor ids, int prompt, object conversation)
    {
        using IDisposable noGrad = no_grad();
        List<Tensor> logits = [Logits(ids.narrow(1, 0, prompt), 0, conversation)];
        for (int i = prompt; i < ids.shape[1]; i++)
        {
            logits.Add(Logits(ids.narrow(1, i, 1), i, conversation));
        }

        return cat(logits, 1);
    }

    internal static Tensor Ids(int batch, int tokens, int seed)
    {
        random.manual_seed(seed);
        return randint(0, Vocabulary, [batch, tokens], dtype: ScalarType.Int64);
    }

    public void Dispose() => model.Dispose();
}
