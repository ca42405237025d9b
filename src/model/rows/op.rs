//! A node of the graph as the rules see it: its operator, attributes and the values that it takes.

use std::cell::Cell;
use std::rc::Rc;

use super::size::{Origin, Size, Symbol};
use super::value::{Content, Value};
use crate::model::onnx::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// What a rule gives: a value for each output of the node, or what has become of all of them.
pub(super) type Ruled = Result<Vec<Value>, Content>;

/// A node with its inputs.
pub(super) struct Op<'a> {
    pub node: &'a NodeProto,
    /// Version of the operator set of the node's domain.
    pub opset: i64,
    /// `None` for an optional input that is left out.
    pub inputs: Vec<Option<Value>>,
    pub attributes: Attributes<'a>,
    pub symbols: &'a Symbols,
}

/// The attributes of a node; inside of a function some are those of the node that calls it.
#[derive(Clone)]
pub(super) struct Attributes<'a> {
    pub node: &'a [AttributeProto],
    pub call: Option<Rc<Call<'a>>>,
}

/// Attributes that a function was called with, and those it has where the call names none.
pub(super) struct Call<'a> {
    pub given: Attributes<'a>,
    pub defaults: &'a [AttributeProto],
}

impl<'a> Attributes<'a> {
    fn get(&self, name: &str) -> Option<&'a AttributeProto> {
        let attribute = self.node.iter().find(|attribute| attribute.name() == name)?;
        match attribute.ref_attr_name() {
            "" => Some(attribute),
            outer => {
                let call = self.call.as_ref()?;
                let default = || call.defaults.iter().find(|attribute| attribute.name() == outer);
                call.given.get(outer).or_else(default)
            }
        }
    }
}

/// Makes sizes that were not seen before.
#[derive(Default)]
pub(super) struct Symbols(Cell<u32>);

impl Symbols {
    /// A size of which only a run knows how large it is.
    pub fn free(&self) -> Size {
        self.fresh(Origin::Free)
    }

    /// How many were made so far.
    pub fn count(&self) -> u32 {
        self.0.get()
    }

    pub fn fresh(&self, origin: Origin) -> Size {
        self.0.set(self.0.get() + 1);
        Size::symbol(Symbol {
            origin,
            number: self.0.get(),
        })
    }
}

impl<'a> Op<'a> {
    pub fn kind(&self) -> &'a str {
        self.node.op_type()
    }

    /// The domain of the operator; empty for ONNX's own, whatever it is called.
    pub fn domain(&self) -> &'a str {
        match self.node.domain() {
            "ai.onnx" => "",
            domain => domain,
        }
    }

    /// The operator with its domain, as messages name it.
    fn full_kind(&self) -> String {
        match self.domain() {
            "" => self.kind().to_owned(),
            domain => format!("{domain}::{}", self.kind()),
        }
    }

    fn sentence(&self, does: &str) -> Rc<str> {
        let kind = self.full_kind();
        let sentence = match (self.node.name(), self.node.output.first()) {
            ("", Some(output)) => format!("the node of `{output}` ({kind}) {does}"),
            (name, _) => format!("node `{name}` ({kind}) {does}"),
        };
        sentence.into()
    }

    /// Rows meet in this node.
    pub fn coupled(&self, does: &str) -> Content {
        Content::Coupled(self.sentence(does))
    }

    /// Rows meet along an axis of what this node takes.
    pub fn coupled_at(&self, does: &str, axis: usize) -> Content {
        self.coupled(&format!("{does} (axis {axis})"))
    }

    /// What this node does with the rows cannot be told.
    pub fn unknown(&self, does: &str) -> Content {
        Content::Unknown(self.sentence(does))
    }

    pub fn input(&self, index: usize) -> Option<&Value> {
        self.inputs.get(index)?.as_ref()
    }

    pub fn required(&self, index: usize) -> Result<&Value, Content> {
        self.input(index)
            .ok_or_else(|| self.unknown(&format!("has no input {index}")))
    }

    /// An input that all rows share, such as an axis or a scale; its name is for messages.
    pub fn parameter(&self, index: usize, name: &str) -> Result<Option<&Value>, Content> {
        let Some(value) = self.input(index) else {
            return Ok(None);
        };
        match &value.content {
            Content::Shared => Ok(Some(value)),
            Content::Own | Content::Led => Err(self.coupled(&format!("takes its {name} from the rows"))),
            Content::Count => Err(self.coupled(&format!("takes its {name} from the number of rows"))),
            Content::Place => Err(self.unknown(&format!("takes its {name} from the places of the rows"))),
            spoilt @ (Content::Coupled(_) | Content::Unknown(_)) => Err(spoilt.clone()),
        }
    }

    /// Refuses an input that rows reach where the rule knows only of one that they share, such as weights.
    pub fn shared(&self, index: usize, name: &str) -> Result<(), Content> {
        match self.input(index).map(|value| &value.content) {
            None | Some(Content::Shared) => Ok(()),
            Some(spoilt @ (Content::Coupled(_) | Content::Unknown(_))) => Err(spoilt.clone()),
            Some(_) => Err(self.unknown(&format!("takes {name} from the rows"))),
        }
    }

    /// An input of sizes, which may follow the number of rows.
    pub fn sizes(&self, index: usize, name: &str) -> Result<Option<&Value>, Content> {
        match self.input(index) {
            Some(value) if value.content == Content::Count => Ok(Some(value)),
            _ => self.parameter(index, name),
        }
    }

    /// The constants of an input that all rows share; `None` if it is left out.
    pub fn constants(&self, index: usize, name: &str) -> Result<Option<Vec<i64>>, Content> {
        let Some(value) = self.parameter(index, name)? else {
            return Ok(None);
        };
        let constants = value.constants();
        let constants = constants.ok_or_else(|| self.unknown(&format!("has {name} that only a run knows")))?;
        Ok(Some(constants))
    }

    /// Constants that older versions of an operator take as an attribute and newer ones as an input.
    pub fn axes(&self, attribute: &str, index: usize) -> Result<Option<Vec<i64>>, Content> {
        match self.ints(attribute) {
            Some(axes) => Ok(Some(axes)),
            None => self.constants(index, attribute),
        }
    }

    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attributes.get(name).map_or(default, AttributeProto::i)
    }

    pub fn has(&self, name: &str) -> bool {
        self.attributes.get(name).is_some()
    }

    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        self.attributes.get(name).map(|attribute| attribute.ints.clone())
    }

    pub fn floats(&self, name: &str) -> Option<&'a [f32]> {
        self.attributes.get(name).map(|attribute| &attribute.floats[..])
    }

    pub fn text(&self, name: &str) -> Option<&'a str> {
        let attribute = self.attributes.get(name)?;
        str::from_utf8(attribute.s.as_deref()?).ok()
    }

    pub fn tensor(&self, name: &str) -> Option<&'a TensorProto> {
        self.attributes.get(name)?.t.as_ref()
    }

    pub fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.attributes.get(name)
    }

    pub fn graph(&self, name: &str) -> Result<&'a GraphProto, Content> {
        let graph = self.attributes.get(name).and_then(|attribute| attribute.g.as_ref());
        graph.ok_or_else(|| self.unknown(&format!("has no graph `{name}`")))
    }

    pub fn free(&self) -> Size {
        self.symbols.free()
    }

    /// A size, or one that only a run knows where it grew too complicated to follow.
    pub fn size_or_fresh(&self, size: Option<Size>, of: &[&Size]) -> Size {
        let origin = of.iter().map(|size| size.origin()).max().unwrap_or(Origin::Free);
        size.unwrap_or_else(|| self.symbols.fresh(origin))
    }

    /// What depends on all of these values.
    pub fn content<'v>(&self, values: impl IntoIterator<Item = &'v Value>) -> Content {
        values.into_iter().fold(Content::Shared, |content, value| {
            content.and(
                &value.content,
                || self.coupled("depends on how many rows there are"),
                || self.unknown("uses the place of a row among the others"),
            )
        })
    }

    /// The inputs that are there.
    pub fn all(&self) -> impl Iterator<Item = &Value> {
        self.inputs.iter().flatten()
    }
}
