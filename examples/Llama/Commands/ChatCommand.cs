using System.CommandLine;
using System.Globalization;
using System.Text;
using Mustafar.Examples.Llama.Chat;
using Mustafar.Examples.Llama.Generation;

namespace Mustafar.Examples.Llama.Commands;

/// <summary>A chat, a line of input per turn, over one cache.</summary>
internal sealed class ChatCommand : LlamaCommand
{
    private const string Reset = "/reset";
    private const string Exit = "/exit";

    private readonly TextReader _input;
    private readonly Option<string?> _system = new("--system") { Description = "What the system says first.", HelpName = "TEXT" };
    private readonly Option<string?> _template = new("--chat-template")
    {
        Description = "How a chat is written down, in place of what the checkpoint says.",
    };

    private readonly GenerationOptions _generation = new(maxTokens: 512);

    public ChatCommand(TextReader input)
        : base("chat", $"Chat: each line of input is a turn. {Reset} begins anew, {Exit} ends.")
    {
        _input = input;
        _template.AcceptOnlyFromAmong([.. ChatTemplates.Names]);
        Add([_system, _template, .. _generation.All]);
    }

    protected override void Run(ParseResult arguments, CommonSettings settings, ConsoleOutput output)
    {
        Sampler sampler = new(_generation.Sampling(arguments));
        int maxTokens = Positive(arguments, _generation.MaxTokens);
        using ModelSession session = ModelSession.Load(settings, output);
        ChatModel model = ChatModel.Of(session.Language, arguments.GetValue(_template));
        ChatTurn[] opening = arguments.GetValue(_system) is string system ? [new ChatTurn(ChatSpeaker.System, system)] : [];
        using Conversation conversation = new(model, session.NewCache());
        List<Exchange> exchanges = [];
        while (Ask(output) is string line && line != Exit)
        {
            if (line == Reset)
            {
                conversation.Reset();
                output.WriteLine("--- a new chat");
            }
            else if (line.Length > 0)
            {
                ChatTurn user = new(ChatSpeaker.User, line);
                exchanges.Add(Reply(conversation, conversation.Turns.Count == 0 ? [.. opening, user] : [user], sampler, maxTokens, output));
            }
        }

        output.WriteJson(new Result(RunReport.Of(session), exchanges, MemoryReport.Of(conversation.CachedTokens, conversation.Memory)));
    }

    private static Exchange Reply(
        Conversation conversation, ChatTurn[] turns, Sampler sampler, int maxTokens, ConsoleOutput output)
    {
        StringBuilder reply = new();
        foreach (string part in conversation.Reply(turns, sampler, maxTokens))
        {
            reply.Append(part);
            output.Write(part);
        }

        ReplyUsage usage = conversation.LastUsage;
        output.WriteLine();
        output.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"--- read {usage.NewTokens} tokens after {usage.CachedTokens} cached, wrote {usage.ReplyTokens}; cache ")
            + MemoryReport.Of(conversation.CachedTokens, conversation.Memory));
        return new Exchange(
            turns[^1].Text,
            reply.ToString(),
            usage.CachedTokens,
            usage.NewTokens,
            usage.ReplyTokens,
            usage.End == ReplyEnd.Length ? "length" : "stop");
    }

    private string? Ask(ConsoleOutput output)
    {
        output.Write("> ");
        string? line = _input.ReadLine();
        if (line is null)
        {
            output.WriteLine();
        }

        return line;
    }

    private sealed record Exchange(string User, string Assistant, int CachedTokens, int NewTokens, int ReplyTokens, string FinishReason);

    private sealed record Result(RunReport Run, List<Exchange> Exchanges, MemoryReport Cache);
}
